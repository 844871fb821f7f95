"""`docs/zh-CN/export-pitfalls.md`: what the page says around the rules, and the rules, in Chinese."""

from __future__ import annotations

from docs._pages.export_pitfalls_en import COMMAND, PageWords, RuleWords
from mmdeploy_ext.lint.rule import CRASHES, FAILS, REFUSED, RIGHT, UNRUNNABLE, WRONG, WRONG_AT_ONCE

INTRODUCTION = f"""[English](../export-pitfalls.md) | [简体中文](export-pitfalls.md)

# ONNX 导出的陷阱

本页由 `{COMMAND}` 根据 `mmdeploy_ext/lint/rules` 中的规则生成，请勿手动修改。

“要导出的模型里应避免这样写”的清单大多很旧，而且互相抄来抄去。这一份可以执行：每一条都是一个模块，
在本环境中用 torch 2.13 的两个导出器（TorchScript 为 opset 17，dynamo 为 opset 18）导出，
再用 ONNX Runtime（CPU）在导出时从未见过的输入上运行。测试会重做一遍：

```bash
python -m pytest tests/mmdeploy_ext/lint -m "not matrix"
python -m pytest tests/mmdeploy_ext/lint -m matrix
```

第一条命令检查 linter 和 TorchScript 导出器，第二条检查 dynamo 导出器。

## 我的模型有没有问题？

```bash
python tools/onnx/lint.py configs/demo/atss_toy.py demo/checkpoints/atss_toy.pth --dynamic-export
```

它在观察之下运行模型一次，并指出是哪几行代码。`--exporter both` 检查两个导出器，
`--notes` 连导出器能正确处理的写法也列出来，
`--json FILE` 写出全部内容。退出码 0 表示没有问题，1 表示有错误，2 表示用法有误。对其他任意模块：

```python
from mmdeploy_ext.lint import check

report = check(module, (images, image_sizes))
for finding in report:
    print(finding.severity, finding.rule, finding.site, finding.details)
```

`check` 跟踪哪些张量取决于哪些输入的值、哪些数字来自尺寸。
从参数里取出一个数不算问题，同一行代码从输入里取数就算。
用 `other_inputs=` 给出其他尺寸的输入后，只有真正变化的尺寸才算。所要求的导出器会出错时，
该条是 error，否则是 warning 或 note。

它看不到的有：以普通数字进入 numpy 的尺寸、C++ 扩展的代码、TorchScript 函数，以及这个例子没有走到的分支。
"""

OUTCOMES = {
    RIGHT: ('正确', '可以导出，结果与 PyTorch 一致，在导出时没见过的输入上也一致'),
    WRONG: ('换输入就错', '可以导出，但在导出时没见过的输入上，数值与 PyTorch 不同'),
    WRONG_AT_ONCE: ('错误', '可以导出，但就连在导出所用的输入上，数值也与 PyTorch 不同'),
    FAILS: ('换输入就报错', '可以导出，但在导出时没见过的输入上，推理引擎报错退出'),
    REFUSED: ('拒绝', '导出器抛出异常'),
    UNRUNNABLE: ('引擎拒绝', '可以导出，但 ONNX Runtime（CPU）无法加载该文件'),
    CRASHES: ('进程崩溃', '导出使 Python 进程终止（段错误）'),
}
"""Outcome -> its name and meaning."""

THEMES = {
    'Numbers taken out of tensors': '从张量里取出的数',
    'Sizes': '尺寸',
    'Writes into tensors': '对张量的写入',
    'Inputs, outputs and state': '输入、输出与状态',
    'Precision': '精度',
    'Operators': '算子',
}
"""Heading in English -> in Chinese."""

RULES = {
    'value-to-python': RuleWords(
        '从张量里取出 Python 数值：`.item()`、`int(t)`、`float(t)`、`.tolist()`、`torch.tensor([t])`',
        'TorchScript 导出器会把 trace 时遇到的那个数写成常量。dynamo 导出器能跟踪 `.item()`。',
        '让它保持为张量：只有一个元素的张量可以直接参与算术、比较和索引。',
    ),
    'value-to-numpy': RuleWords(
        '数值经过 numpy：`.numpy()`、`np.f(t)`',
        'numpy 算出来的东西在 trace 中是常量。'
        'torch.export 把它认识的 numpy 函数换成自己的实现，其余的一律拒绝。',
        '改用 torch 中的同名函数。',
    ),
    'value-in-branch': RuleWords(
        '取决于张量值的 `if`',
        'TorchScript 导出器只写出例子走过的那个分支。torch.export 拒绝导出。',
        '用 `torch.where` 合并两个分支；或者用掩码；或者导出两个图，把 `if` 放在图外。',
    ),
    'value-in-loop': RuleWords(
        '循环次数取决于张量值：`range(int(t))`、`while t`',
        '例子循环了多少次，TorchScript 导出器就写出多少次。torch.export 拒绝导出。',
        '对全部元素一次算完（累加、掩码、乘方），或者固定循环次数再加掩码。',
    ),
    'size-to-python': RuleWords(
        '把尺寸变成普通数字：`len(t)`、`int(t.shape[0])`、`math.ceil(t.shape[0] / 2)`',
        '`t.shape[0]` 在两个导出器中都保持动态；但 `len`、`int`、`float`、'
        '`round` 和 `math` 在 TorchScript 导出器中'
        '会把它变成例子的那个数。',
        '直接使用 `t.shape[0]`；除法用 `//`；要取整就对张量取整，不要对尺寸取整。',
    ),
    'size-in-branch': RuleWords(
        '取决于尺寸的 `if`',
        '两个导出器都只写出例子走过的分支；dynamo 导出器同样不报错。',
        '把两个分支写成同一个表达式；或者固定该维度；或者每个分支各导出一个图。',
    ),
    'size-in-loop': RuleWords(
        '逐行遍历张量：`for row in t`、`range(t.shape[0])`',
        '例子有多少行，TorchScript 导出器就把循环体复制多少份。torch.export 拒绝导出。',
        '对整个维度做一次运算。',
    ),
    'size-changed-in-place': RuleWords(
        '就地修改尺寸：`n, c = t.shape; n += 2`',
        'TorchScript 做 trace 时尺寸是张量，torch 的文档警告说，`+=` 会让之后所有读取它的地方都跟着改变。',
        '换一个新名字：`grown = n + 2`。',
    ),
    'topk-from-size': RuleWords(
        'top-k 的 K 取自尺寸：`t.topk(min(k, t.shape[0]))`',
        'TorchScript 导出器写入例子的 K：输入更大时候选太少，输入更小时引擎报错。',
        'K 用常量，并把该维度填充到至少 K；或者先排序再切片。TensorRT 要求 K 是常量。',
    ),
    'tensor-data': RuleWords(
        '`tensor.data`',
        'TorchScript 的 tracer 看不到它：例子的数值成了常量。'
        '用 torch 2.13 的 dynamo 导出器时，Python 进程因段错误而崩溃。',
        '用 `.detach()`；如果是写入 `.data`，就新建一个张量。',
    ),
    'parameter-data': RuleWords(
        '参数或 buffer 的 `.data`',
        '对 TorchScript 导出器是常量，本该如此。torch 2.13 的 dynamo 导出器会因此崩溃，或者拒绝导出。',
        '直接用参数本身，或者用 `.detach()`。',
    ),
    'index-put-negative': RuleWords(
        '用负索引写入：`t[index] = v`，其中 `index < 0`',
        '旧的导出器会原样写出负索引。ONNX 的 ScatterND 和 ScatterElements 接受负索引。',
        '用 ONNX Runtime 运行时不必改；用其他引擎时写 `torch.where(index < 0, index + n, index)`。',
    ),
    'index-put-many-ranks': RuleWords(
        '用 2 维或更高维的索引写入：`t[rows, columns] = v`',
        '旧的导出器给出的形状是错的。现在索引会正确广播。',
        '用 ONNX Runtime 运行时不必改；否则用一个展平的索引加 `scatter`。',
    ),
    'slice-assigned': RuleWords(
        '对切片赋值：`t[1:-1, :2] = v`',
        '它会变成一串 Shape、Range 和 ScatterND；结果正确，但一个 Concat 就够的地方用了好几个节点。',
        '不必改；想让图更小，就用 `torch.cat` 拼接各部分。',
    ),
    'write-to-view': RuleWords(
        '写入视图：`column = t[:, 0]; column[mask] = v`、`t.view(-1)[0] = v`、`t.chunk(2)[0].mul_(2)`',
        'TorchScript 导出器能跟踪只经过一次索引的写入（`t[1:] += 1`、`t[:, :2].sigmoid_()`）。'
        '写入视图的视图，或者写入 `view`、`flatten`、`unbind`、`chunk`、`t()` 的返回值，都会丢失。',
        '用 `torch.where`，或者用 `torch.cat` 拼接新的列。',
    ),
    'input-written': RuleWords(
        '写入输入：`x += 1`',
        '在 PyTorch 中调用者能看到这个改动，在 ONNX 中看不到。',
        '换一个新名字：`y = x + 1`。',
    ),
    'unused-input': RuleWords(
        '没有任何输出取决于它的输入',
        'TorchScript 导出器会把它从文件中去掉：谁再喂这个输入就会报错。',
        '从函数签名中删掉它。（本项目会按 spec 把被去掉的输入补回来。）',
    ),
    'frozen-input': RuleWords(
        '输出取决于这个输入，但不是通过张量',
        '在 PyTorch 中输出随它变化；在 TorchScript 导出器的文件中则不变：它的值在 trace 时就固定了。',
        '看同一个输入的其他报告：它在某处变成了 Python 数值或 numpy 数组。',
    ),
    'input-by-attribute': RuleWords(
        '不从参数、而从模块的属性读取输入',
        'TorchScript 按对象身份识别张量，所以在那里没有问题。'
        'torch.export 把属性当作常量：输入在文件里，但它的值没有被用到。',
        '使用参数。',
    ),
    'state-written': RuleWords(
        '在 `forward` 中写入模块的状态',
        '计算图没有状态。文件每次都从导出时模块所保存的状态开始。',
        '把状态作为参数和返回值，由调用者传回来。',
    ),
    'dict-output': RuleWords(
        '以 dict 形式输出',
        '它们按位置成为输出，键会丢失。',
        '返回 tuple，顺序由你决定，再给各输出命名。',
    ),
    'nested-output': RuleWords(
        'tuple 里还有 list 或 tuple 的输出',
        '它们按顺序展平，原来的分组会丢失。',
        '返回一层的 tuple。',
    ),
    'number-output': RuleWords(
        '输出中有 Python 数值或 numpy 数组',
        '两个导出器都拒绝。',
        '去掉它：它是常量。',
    ),
    'text-output': RuleWords(
        '输出中有字符串',
        'TorchScript 导出器会略去它；dynamo 导出器拒绝导出。',
        '去掉它；名字应写在文件的元数据里。',
    ),
    'training-mode': RuleWords(
        '模块处于训练模式',
        'TorchScript 导出器会切换到评估模式，dynamo 导出器不会：BN 会使用当前 batch 的统计量。',
        '导出前调用 `module.eval()`。',
    ),
    'float64': RuleWords(
        '模型内部使用 float64',
        'GPU 上的引擎没有 float64，ONNX Runtime（CPU）也缺少部分 float64 算子：'
        'float64 的 Atan 能导出，但无法加载。',
        '图中用 float32；需要 float64 的量（时间、全局位置）在图外计算。',
    ),
    'absolute-time': RuleWords(
        '很大的数（时间戳、全局位置）变成 float32',
        '文件与 PyTorch 错得一样：在今天的时间戳（1.5e9 s）附近，'
        'float32 的间隔是 128 s，在 UTM 坐标处是 6 cm。'
        '这种数相减得到的只是噪声。',
        '在图外用 float64 相减；喂给图的是时间差和相对位置。',
    ),
    'matrix-inverse': RuleWords(
        '`torch.inverse`、`torch.linalg.inv`',
        'ONNX 没有这个算子；两个导出器都拒绝。',
        '在图外求逆，把逆矩阵喂进去；相机的 4x4 矩阵只需求逆一次。',
    ),
    'random': RuleWords(
        '在 `forward` 中取随机数；没有关闭的 dropout',
        '文件会自己取随机数：它无法与任何结果比较。',
        '把噪声作为输入；`module.eval()` 会关闭 dropout。',
    ),
    'unsupported-operator': RuleWords(
        '导出器在这个 opset 下不认识的算子',
        '导出以该算子的名字报错结束。报告会给出是哪一行代码。',
        '更高的 opset 若有这个算子就用更高的；或者用标准算子改写；或者写自定义算子。',
    ),
    'function-without-symbolic': RuleWords(
        '没有 `symbolic` 的 `torch.autograd.Function`',
        'TorchScript 导出器不知道该写什么。dynamo 导出器会跟踪它的 Python 代码。',
        '在 `forward` 旁边写一个 `symbolic`；或者改用 torch 的函数。',
    ),
    'function-with-symbolic': RuleWords(
        '带有 `symbolic` 的 `torch.autograd.Function`',
        'TorchScript 导出器按 `symbolic` 写出节点。dynamo 导出器不看它，而是跟踪 `forward` 的 Python 代码，'
        '因此引擎有专门 kernel 的那个节点不会出现在它的文件里。',
        '对 TorchScript 不必改。若要在 dynamo 导出器的文件中得到该节点，用 `torch.onnx.ops.symbolic`。',
    ),
}
"""Id -> texts."""

CHINESE = PageWords(
    page='zh-CN/export-pitfalls.md',
    introduction=INTRODUCTION,
    legend='各种结果的含义',
    legend_columns=('结果', '含义'),
    overview='总览',
    overview_columns=('规则', '写法'),
    outcomes=OUTCOMES,
    about_sizes='只对保持动态的维度有影响。',
    fix='**改法。** ',
    instead='改为',
    same_module='同一个模块，处于评估模式',
    right='两个导出器都正确',
    brackets='（{}）',
    colon='：',
    semicolon='；',
    comma='，',
    stop='。',
    themes=THEMES,
    rules=RULES,
)
"""The page in Chinese."""
