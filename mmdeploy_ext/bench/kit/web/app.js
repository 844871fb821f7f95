/** The page of a kit: runs its inputs on the visitor's device, judges the outputs, and takes pictures. */

import { shapeText } from 'kit/arrays.js';
import { classColour, className, drawResults } from 'kit/draw.js';
import { Engine, PROVIDERS } from 'kit/engine.js';
import { judgeCase, verdictOf } from 'kit/judge.js';
import { Kit } from 'kit/kit.js';
import { cannotShow, decode, detect } from 'kit/picture.js';

const SHOWN_FAILURES = 8;
const element = (id) => document.getElementById(id);
const engines = new Map(); // execution provider -> promise of its engine

let kit;
let shown; // {bitmap, results} of the picture

/** Return a new element with text or children. */
function make(tag, content, attributes = {}) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...[content].flat());
  return node;
}

/** Show the state of the page in words: 'ready', 'running', 'equal', 'different' or 'failed'. */
function show(state, verdict, detail = '') {
  document.body.dataset.state = state;
  element('verdict').textContent = verdict;
  element('detail').textContent = detail;
}

const provider = () => document.querySelector('input[name=provider]:checked').value;

function engineOf(name) {
  if (!engines.has(name)) {
    engines.set(name, Engine.open(kit, name));
    engines.get(name).catch(() => engines.delete(name)); // so that another click tries again
  }
  return engines.get(name);
}

function browserName() {
  const [, name, version] = navigator.userAgent.match(/(Firefox|Edg|Chrome|Version)\/(\d+)/) ?? [];
  const names = { Edg: 'Edge', Version: 'Safari' };
  return name ? `${names[name] ?? name} ${version}` : 'this browser';
}

/** Let the browser paint before the next piece of work. */
const painted = () =>
  new Promise((resolve) => {
    setTimeout(resolve);
  });

/** Run and judge every input; say in the end whether all outputs are PyTorch's. */
async function run() {
  const { cases } = kit.manifest;
  const judgements = [];
  element('run').disabled = true;
  element('failures').replaceChildren();
  cases.forEach((entry) => showRow(entry, 'waiting', '', ''));
  try {
    show('running', 'Loading the engine and the model', PROVIDERS[provider()].title);
    await painted();
    const engine = await engineOf(provider());
    for (const [index, entry] of cases.entries()) {
      show('running', `Input ${index + 1} of ${cases.length}`, entry.title);
      showRow(entry, 'running', '', '');
      await painted();
      const kitCase = await kit.readCase(entry);
      const start = performance.now();
      const outputs = await engine.run(kitCase.inputs);
      const milliseconds = performance.now() - start;
      const judgement = judgeCase(kitCase, outputs, kit);
      judgements.push(judgement);
      showRow(
        entry,
        judgement.failures.length ? 'different' : 'equal',
        judged(judgement),
        `${milliseconds.toFixed(0)} ms`,
      );
      element('progress').value = (index + 1) / cases.length;
    }
    showVerdict(verdictOf(judgements, kit), engine);
  } catch (error) {
    show('failed', 'Stopped', error.message);
    throw error;
  } finally {
    element('run').disabled = false;
  }
}

/** Return in words what of a case was compared. */
function judged({ tensors, results }) {
  const words = [];
  if (tensors.length) words.push(`${tensors.length} tensors`);
  if (results.length) {
    const [matched, expected] = ['matched', 'reference'].map((name) =>
      results.reduce((sum, row) => sum + (row[name] ?? 0), 0),
    );
    const worst = Math.min(...results.map((row) => row.worstIou ?? 1));
    words.push(`${matched} of ${expected} results, worst IoU ${worst.toFixed(5)}`);
  }
  return words.join(', ');
}

function showRow({ name, title, inputs }, state, words, time) {
  const id = `case-${name}`;
  const shapes = Object.values(inputs)[0].shape;
  const cells = [name, title, shapeText(shapes), words, time].map((text) => make('td', text));
  const mark = make('span', '', { className: 'mark', title: state });
  const row = make('tr', [make('td', mark), ...cells], { id });
  row.dataset.state = state;
  if (element(id)) element(id).replaceWith(row);
  else element('cases').append(row);
}

function showVerdict(verdict, engine) {
  const library = `onnxruntime-web ${engine.version}, ${PROVIDERS[provider()].title}, one thread`;
  const told = `${browserName()}, ${library}, as this browser tells`;
  const unread = kit.isChecked
    ? ''
    : ' The hashes of the files were not compared: browsers do that on HTTPS and loopback alone.';
  const compared = verdict.matched
    ? `${verdict.matched} results matched with PyTorch's.`
    : `${verdict.compared} tensors compared with PyTorch's.`;
  const summary = verdict.equal
    ? compared
    : `${verdict.failures.length} images or tensors differ from PyTorch's.`;
  show(verdict.equal ? 'equal' : 'different', verdict.claim, `${told}. ${summary}${unread}`);
  const { failures } = verdict;
  const more = failures.length - SHOWN_FAILURES;
  element('failures').replaceChildren(
    ...failures.slice(0, SHOWN_FAILURES).map((failure) => make('li', failure)),
  );
  if (more > 0) element('failures').append(make('li', `${more} more`));
}

/** Take a picture through the model and draw what it finds. */
async function tryPicture(file) {
  const note = element('picture-note');
  try {
    note.textContent = 'Running…';
    await painted();
    const { bitmap, picture } = await decode(file);
    const engine = await engineOf(provider());
    const start = performance.now();
    const results = await detect(engine, picture, kit.metadata);
    const time = `prepared and run in ${(performance.now() - start).toFixed(0)} ms`;
    note.textContent = `${file.name ?? 'picture'}, ${bitmap.width} x ${bitmap.height}, ${time}`;
    shown = { bitmap, results };
    drawPicture();
  } catch (error) {
    note.textContent = `${file.name ?? 'picture'}: ${error.message}`;
    throw error;
  }
}

function drawPicture() {
  if (!shown) return;
  const { classes } = kit.metadata;
  const threshold = Number(element('threshold').value);
  const { results } = shown;
  element('threshold-value').textContent = threshold.toFixed(2);
  element('stage').hidden = false;
  drawResults(element('canvas'), shown.bitmap, results, classes, threshold);
  const rows = [...results.scores.keys()].filter((index) => results.scores[index] >= threshold);
  element('detections').replaceChildren(
    ...rows.map((index) => {
      const swatch = make('span', '', { className: 'swatch' });
      swatch.style.background = classColour(results.labels[index]);
      return make('li', [
        swatch,
        className(results.labels[index], classes),
        make('b', results.scores[index].toFixed(3)),
      ]);
    }),
  );
}

function listenForPictures() {
  const reason = cannotShow(kit);
  if (reason) {
    element('picture-note').textContent = `This model cannot be shown a picture here: ${reason}.`;
    element('drop').hidden = true;
    return;
  }
  const drop = element('drop');
  element('file').addEventListener('change', ({ target }) => target.files[0] && tryPicture(target.files[0]));
  element('threshold').addEventListener('input', drawPicture);
  for (const type of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.toggle('over', type === 'dragover');
      if (type === 'drop' && event.dataTransfer.files[0]) tryPicture(event.dataTransfer.files[0]);
    });
  }
}

function showFacts() {
  const { metadata } = kit;
  const {
    made_with: versions,
    title,
    config,
    checkpoint_sha256: weights,
    kit_sha256: hash,
    cases,
  } = kit.manifest;
  const name = config ? config.split('/').at(-1).replace(/\.py$/, '') : title;
  const ofDetector = config && {
    config,
    form: `${metadata.family}/${metadata.form}`,
    weights: weights.slice(0, 12),
  };
  const facts = { ...ofDetector, kit: hash.slice(0, 12), reference: `PyTorch ${versions.torch ?? ''}` };
  document.title = `${name}: mm2onnx kit`;
  element('title').textContent = name;
  element('facts').replaceChildren(
    ...Object.entries(facts).map(([term, value]) => make('div', [make('dt', term), make('dd', value)])),
  );
  element('run').textContent = `Run ${cases.length} inputs`;
  cases.forEach((entry) => showRow(entry, 'waiting', '', ''));
}

/** Open the kit, and show what can be done with it. */
async function start() {
  try {
    kit = await Kit.open();
  } catch (error) {
    show('failed', 'No kit', error.message);
    throw error;
  }
  showFacts();
  const webgpu = document.querySelector('input[value=webgpu]');
  webgpu.disabled = !navigator.gpu;
  if (!navigator.gpu) element('webgpu-note').textContent = 'not in this browser';
  element('run').addEventListener('click', run);
  element('run').disabled = false;
  show(
    'ready',
    'Not run yet',
    "Runs the kit's inputs in this browser and compares the outputs with PyTorch's own results.",
  );
  listenForPictures();
}

start();
