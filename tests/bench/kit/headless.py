"""Pages in headless Chromium, through its debugging pipe: requests, logs and texts; scripts in Node."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
OPTIONS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--remote-debugging-pipe',
    '--window-size=1300,900', 'about:blank',
)  # fmt: skip
TIMEOUT_S = 60
NODE = shutil.which('node')
IMPORTS = """
export async function resolve(name, context, next) {
  if (!name.startsWith('kit/')) return next(name, context);
  return { ...(await next('FOLDER/' + name.slice(4), context)), format: 'module' };
}
"""
"""The page's import map, as a hook of Node."""


class Node:
    """Runs expressions that import the scripts of a folder as a kit's page does."""

    def __init__(self, folder):
        hook = IMPORTS.replace('FOLDER', Path(folder).resolve().as_uri())
        self._head = (
            "import { register } from 'node:module';\n"
            f"register('data:text/javascript,' + encodeURIComponent({json.dumps(hook)}));\n"
        )

    def evaluate(self, expression):
        """Return the value of an asynchronous JavaScript expression."""
        script = f'{self._head}process.stdout.write(JSON.stringify(await {expression}));'
        command = [NODE, '--input-type=module', '-']
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class Browser:
    """One tab. `requests` are the addresses that pages asked for, `problems` what they logged."""

    def __init__(self, profile):
        self.requests, self.problems, self._addresses, self._loaded = [], [], {}, {}
        read_commands, self._commands = os.pipe()
        self._events, write_events = os.pipe()
        command = f'exec "$@" 3<&{read_commands} 4>&{write_events}'
        self._process = subprocess.Popen(
            ['bash', '-c', command, 'bash', PROGRAM, f'--user-data-dir={profile}', *OPTIONS],
            pass_fds=(read_commands, write_events), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_events)
        self._buffer, self._count, self._session = b'', 0, None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')
        self.call('Page.setLifecycleEventsEnabled', enabled=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._events)

    def call(self, method, **params):
        """Send a command and return its result; events that come before it are kept."""
        self._count += 1
        message = dict(id=self._count, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._commands, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._count:
                assert 'error' not in answer, f'{method}: {answer["error"]}'
                return answer['result']

    def open(self, address):
        """Load a page and wait until it and its scripts are there."""
        self._loaded.clear()
        answer = self.call('Page.navigate', url=address)
        assert 'errorText' not in answer, f'{address}: {answer["errorText"]}'
        while answer['loaderId'] not in self._loaded:
            self._receive()

    def evaluate(self, expression):
        """Return the value of a JavaScript expression."""
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def wait_for(self, expression):
        """Wait until an expression is true and return its value."""
        end = time.monotonic() + TIMEOUT_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f'{expression}: never true'
            time.sleep(0.05)
        return value

    def _receive(self):
        while b'\0' not in self._buffer:
            part = os.read(self._events, 1 << 16)
            assert part, f'{PROGRAM} ended'
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b'\0')
        found = json.loads(message)
        self._note(found.get('method'), found.get('params', {}))
        return found

    def _note(self, method, params):
        if method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        elif method == 'Network.loadingFailed' and not params.get('canceled'):
            self.problems.append(f'not loaded: {params["errorText"]}')
        elif method == 'Network.responseReceived' and params['response']['status'] >= 400:
            self.problems.append(f'{params["response"]["status"]}: {params["response"]["url"]}')
        elif method == 'Runtime.exceptionThrown':
            self.problems.append(str(params['exceptionDetails'].get('exception', params)))
        elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning', 'assert'):
            self.problems.append(f'console.{params["type"]}: {params["args"]}')
        elif method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.problems.append(params['entry']['text'])
        elif method == 'Page.frameNavigated':
            self._addresses[params['frame']['loaderId']] = params['frame']['url']
        elif method == 'Page.lifecycleEvent' and params['name'] == 'load':
            self._loaded[params['loaderId']] = self._addresses.get(params['loaderId'])
