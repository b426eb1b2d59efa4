import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { selectWeights } from '../lib/formats/checkpoint.js'
import { PickleObject } from '../lib/formats/pickle.js'
import { readSafetensors } from '../lib/formats/safetensors.js'
import { readTorch, TorchTensor } from '../lib/formats/torch.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { materialise } from './helpers/tensors.js'
import {
  dictionary,
  global,
  int,
  pickle,
  storage,
  tensor,
  text,
  torchFile,
  tuple,
  zip,
} from './helpers/torch.js'

const folder = temporaryFolder()
let files = 0

function write(bytes: Uint8Array): string {
  const file = path.join(folder, `${++files}.pt`)
  writeFileSync(file, bytes)
  return file
}

const load = (data: Uint8Array, storages: Record<string, Uint8Array> = {}) =>
  readTorch(write(torchFile(data, storages)))
const bad = (message: RegExp, data: Uint8Array, storages: Record<string, Uint8Array> = {}) =>
  rejects(() => load(data, storages), 'ERR_DIT_FORMAT', message)

/** The parts of a dictionary of tensors. */
function parts(root: unknown) {
  assert.instance(root, Map)
  return [...(root as Map<unknown, unknown>)].map(([name, value]) => {
    assert.instance(value, TorchTensor)
    return [String(name), (value as TorchTensor).part] as const
  })
}

test('odd tensors: strided, transposed, expanded, shared, scalar, empty, every type', async () => {
  const read = parts(await readTorch(fixture('pt_checkpoint/odd_tensors.pt')))
  const { tensors } = await readSafetensors(fixture('pt_checkpoint/odd_tensors.safetensors'))
  assert.equal(
    read.map(([name]) => name),
    [...tensors.keys()],
  )
  for (const [name, part] of read) {
    const expected = tensors.get(name)
    assert.ok(expected)
    assert.equal(materialise({ parts: [part] }), materialise({ parts: [expected] }), name)
  }
  const types = Object.fromEntries(read.map(([name, part]) => [name, part.dtype]))
  assert.is(types.bfloat16, 'BF16')
  assert.is(types.float64, 'F64')
  assert.is(types.bool, 'BOOL')
  const expanded = read.find(([name]) => name === 'expanded')?.[1]
  assert.equal(expanded?.strides, [0, 0])
})

test('a training checkpoint: EMA by default, model on request, args as data', async () => {
  const file = fixture('pt_checkpoint/train_checkpoint.pt')
  const root = await readTorch(file)
  const expected = {
    ema: fixture('dit_tiny_forward/micro24/model.safetensors'),
    model: fixture('pt_checkpoint/train_checkpoint_model.safetensors'),
  }
  for (const choice of [undefined, 'ema', 'model'] as const) {
    const { tensors, weights, args } = selectWeights(file, root, choice)
    assert.is(weights, choice ?? 'ema')
    assert.is(args.get('model'), 'DiT-XL/2')
    assert.is(args.get('num_classes'), 5)
    const want = (await readSafetensors(expected[choice ?? 'ema'])).tensors
    assert.equal([...tensors.keys()].sort(), [...want.keys()].sort())
    for (const [name, part] of want) {
      const got = tensors.get(name)
      assert.ok(got)
      assert.equal(materialise({ parts: [got] }), materialise({ parts: [part] }), name)
    }
  }
})

test('a bare state dict, a wrapped one, one set of weights only', async () => {
  const w = tensor(storage('torch.FloatStorage', '0', 2), 0, [2], [1])
  const select = async (items: Record<string, Uint8Array>, choice?: 'ema' | 'model') =>
    selectWeights('f.pt', await load(pickle(dictionary(items)), { 0: Buffer.alloc(8) }), choice)
  assert.equal([...(await select({ w })).tensors.keys()], ['w'])
  const wrapped = { 'module._orig_mod.a': w, 'module._orig_mod.b': w }
  assert.equal([...(await select(wrapped)).tensors.keys()], ['a', 'b'])
  assert.equal([...(await select({ 'module.a': w, b: w })).tensors.keys()], ['module.a', 'b'])
  assert.equal([...(await select({ state_dict: dictionary({ w }) })).tensors.keys()], ['w'])
  const model = { model: dictionary({ w }) }
  assert.is((await select(model)).weights, 'model')
  await rejects(() => select(model, 'ema'), 'ERR_DIT_OPTION', /no 'ema' weights, only 'model'/)
  await rejects(() => select({ w, n: int(3) }), 'ERR_DIT_FORMAT', /entry 'n' is no tensor/)
  await rejects(() => select({}), 'ERR_DIT_FORMAT', /is empty/)
  const list = await load(pickle(']'))
  assert.throws(() => selectWeights('f.pt', list), /no dictionary of tensors/)
})

const causes: [string, RegExp][] = [
  ['deflated', /'archive\/data.pkl' is compressed/],
  ['eval', /names '__builtin__.eval'.*Nothing was executed/],
  ['missing_storage', /lacks its storage '0'/],
  ['os_system', /names 'posix.system'.*Nothing was executed/],
  ['short_storage', /storage '0' should have 32 bytes but the archive has 24/],
  ['truncated_half', /damaged or cut off/],
  ['truncated_tail', /damaged or cut off/],
]
for (const [name, message] of causes) {
  test(`bad_inputs/${name}`, async () => {
    const before = process.memoryUsage().arrayBuffers
    await rejects(() => readTorch(fixture(`bad_inputs/${name}.pt`)), 'ERR_DIT_FORMAT', message)
    assert.ok(process.memoryUsage().arrayBuffers - before < 1 << 20)
  })
}

test('nothing of a bad pickle runs', () => {
  const script = `
    import { readTorch } from './lib/formats/torch.js'
    Promise.allSettled(process.argv.slice(1).map(readTorch)).then((results) => {
      console.log(results.map(({ reason }) => reason?.message.split('. ')[1]).join())
    })`
  const run = spawnSync(
    process.execPath,
    [
      '--import',
      'tsx',
      '--input-type=module',
      '-e',
      script,
      fixture('bad_inputs/os_system.pt'),
      fixture('bad_inputs/eval.pt'),
    ],
    { encoding: 'utf8' },
  )
  assert.is(run.stdout, 'Nothing was executed,Nothing was executed\n', run.stderr)
  assert.is(run.stderr, '')
})

test('the format before PyTorch 1.6 is named, with what to do', () =>
  rejects(
    () => readTorch(fixture('pt_checkpoint/legacy_format.pt')),
    'ERR_DIT_FORMAT',
    /before PyTorch 1\.6.*torch\.save\(torch\.load/,
  ))

test('other files', async () => {
  const pointer = write(Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:00\n'))
  await rejects(() => readTorch(pointer), 'ERR_DIT_FORMAT', /git lfs pull/)
  await rejects(() => readTorch(write(Buffer.alloc(0))), 'ERR_DIT_FORMAT', /no torch file/)
  await rejects(() => readTorch(write(zip({ 'a/b': 'x' }))), 'ERR_DIT_FORMAT', /no data\.pkl/)
  const twice = zip({ 'a/data.pkl': pickle('}'), 'b/data.pkl': pickle('}') })
  await rejects(() => readTorch(write(twice)), 'ERR_DIT_FORMAT', /more than one data\.pkl/)
  const big = zip({ 'a/data.pkl': pickle('}'), 'a/byteorder': 'big' })
  await rejects(() => readTorch(write(big)), 'ERR_DIT_FORMAT', /byte order is 'big'/)
  const little = zip({ 'a/data.pkl': pickle('}'), 'a/byteorder': 'little' })
  assert.equal(await readTorch(write(little)), new Map())
  await rejects(() => readTorch(path.join(folder, 'none.pt')), 'ERR_DIT_FILE', /ENOENT/)
  await rejects(() => readTorch(folder), 'ERR_DIT_FILE', /EISDIR/)
})

test('untyped storages, with the type in the tensor', async () => {
  const args = [
    storage('torch.storage.UntypedStorage', '0', 8),
    int(1),
    tuple(int(3)),
    tuple(int(1)),
    Buffer.from([0x89]),
    Buffer.from('}'),
    global('torch', 'float16'),
  ]
  const v3 = Buffer.concat([
    global('torch._utils', '_rebuild_tensor_v3'),
    tuple(...args),
    Buffer.from('R'),
  ])
  const [[, part] = []] = parts(await load(pickle(dictionary({ h: v3 })), { 0: Buffer.alloc(8) }))
  assert.is(part?.dtype, 'F16')
  assert.equal(part?.shape, [3])
  await bad(
    /reaches beyond its storage of 3/,
    pickle(
      dictionary({
        h: Buffer.from(
          v3.toString('latin1').replace('Q\x4a\x01', 'Q\x4a\x02').replace('J\x08', 'J\x06'),
          'latin1',
        ),
      }),
    ),
    { 0: Buffer.alloc(8) },
  )
})

test('a view stays within its storage', async () => {
  const f32 = storage('torch.FloatStorage', '0', 6)
  const data = { 0: Buffer.alloc(24) }
  const make = (...args: [number, number[], number[]]) =>
    pickle(dictionary({ w: tensor(f32, ...args) }))
  assert.is(parts(await load(make(0, [2, 3], [3, 1]), data)).length, 1)
  assert.is(parts(await load(make(6, [0, 3], [3, 1]), data)).length, 1)
  await bad(/reaches beyond its storage of 6/, make(1, [2, 3], [3, 1]), data)
  await bad(/reaches beyond/, make(0, [2], [6]), data)
  await bad(/invalid offset, shape or stride/, make(-1, [2], [1]), data)
  await bad(/invalid offset, shape or stride/, make(0, [-2], [1]), data)
  await bad(/invalid offset, shape or stride/, make(0, [2], [-1]), data)
  await bad(/invalid offset, shape or stride/, make(0, [2], [1, 1]), data)
  const huge = new Array(4).fill(2 ** 30)
  await bad(/too large/, make(0, huge, [0, 0, 0, 0]), data)
  await bad(
    /invalid offset, shape or stride/,
    make(0, new Array(65).fill(1), new Array(65).fill(0)),
    data,
  )
})

test('a pickle cannot change a shape after it was checked', async () => {
  // The shape is stored under the memo's key 7, and a number appended to it after the tensor was made.
  const shape = Buffer.concat([tuple(int(2)), Buffer.from([0x71, 7])])
  const f32 = storage('torch.FloatStorage', '0', 2)
  const args = tuple(f32, int(0), shape, tuple(int(1)), Buffer.from([0x89]), Buffer.from('}'))
  const made = Buffer.concat([global('torch._utils', '_rebuild_tensor_v2'), args, Buffer.from('R')])
  const data = pickle(made, 'h', 7, int(1000), 'a', '0')
  const root = await load(data, { 0: Buffer.alloc(8) })
  assert.instance(root, TorchTensor)
  assert.equal((root as TorchTensor).part.shape, [2])
})

test('opcodes of protocols 2 to 5', async () => {
  const value = async (...pieces: (string | number | Uint8Array)[]) => load(pickle(...pieces))
  const long = (...bytes: number[]) => Buffer.from([0x8a, bytes.length, ...bytes])
  assert.is(await value(long()), 0)
  assert.is(await value(long(255)), -1)
  assert.is(await value(long(0, 1)), 256)
  assert.is(await value(long(0, 0, 0, 0, 0, 0, 0, 1)), 2n ** 56n)
  assert.is(await value(Buffer.from('8b0200000000ff', 'hex')), -256)
  assert.is(await value('G', Buffer.from('3ff8000000000000', 'hex')), 1.5)
  assert.is(await value('M', 1, 2), 513)
  assert.is(await value('J', 255, 255, 255, 255), -1)
  assert.is(await value('N'), null)
  assert.equal(await value('(', 0x88, 0x89, 't'), [true, false])
  assert.equal(await value(int(1), int(2), int(3), 0x87), [1, 2, 3])
  assert.equal(await value(']', int(1), 'a(', int(2), int(3), 'e'), [1, 2, 3])
  assert.equal(await value(0x8f, '(', int(1), int(1), 0x90), new Set([1]))
  assert.equal(await value('(', int(1), 0x91), new Set([1]))
  assert.equal(await value('}', text('a'), int(1), 's'), new Map([['a', 1]]))
  assert.equal(await value(0x95, Buffer.alloc(8), 0x8c, 2, 'hi', 0x94, '0h', 0), 'hi')
  assert.equal(await value('C', 2, 'ab'), Buffer.from('ab'))
  assert.equal(await value('B', Buffer.from([2, 0, 0, 0]), 'ab'), Buffer.from('ab'))
  assert.equal(await value(0x8d, Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), 'ab'), 'ab')
  assert.equal(await value(int(1), '2', 0x86), [1, 1])
  assert.equal(await value(int(7), '(', int(1), int(2), '1'), 7)
  const namespace = [global('argparse', 'Namespace'), ')', 0x81, dictionary({ lr: int(3) }), 'b']
  const args = await value(...namespace)
  assert.instance(args, PickleObject)
  assert.equal([...(args as PickleObject).state], [['lr', 3]])
  const stackGlobal = [text('collections'), text('OrderedDict'), 0x93, ')', 'R']
  assert.equal(await value(...stackGlobal), new Map())
})

const refusals: [string, RegExp, (string | number | Uint8Array)[]][] = [
  ['text opcode', /opcode 0x69 at byte 2 is not supported/, ['i']],
  ['extension', /opcode 0x82/, [0x82, 1]],
  ['out-of-band buffer', /opcode 0x97/, [0x97]],
  ['protocol', /protocol 6/, [0x80, 6]],
  ['empty stack', /stack is empty/, []],
  ['pop below a mark', /stack is empty/, ['N(0']],
  ['tuple below a mark', /stack is empty/, ['N(', 0x85]],
  ['no mark', /no mark/, ['t']],
  ['memo', /recalls the value 3/, ['h', 3]],
  ['length', /in the middle of a value/, ['X', Buffer.from('ffffffff', 'hex')]],
  ['length of 8 bytes', /in the middle of a value/, [0x8e, Buffer.alloc(8, 0xff)]],
  ['integer', /integer of 255 bytes/, [0x8a, 255, Buffer.alloc(255)]],
  ['UTF-8', /not UTF-8/, [0x8c, 1, 0xff]],
  ['append', /no list/, ['}Na']],
  ['setitem', /no dictionary/, [']NNs']],
  ['odd setitems', /key without a value/, ['}(Nu']],
  ['additems', /no set/, [']', '(N', 0x90]],
  ['call', /no global/, ['N)R']],
  ['call without a tuple', /without a tuple/, [global('collections', 'OrderedDict'), 'NR']],
  [
    'keywords',
    /keyword arguments/,
    [global('argparse', 'Namespace'), ')', dictionary({ a: int(1) }), 0x92],
  ],
  ['build', /no plain object/, [']}b']],
  ['persistent id', /no storage/, [text('x'), 'Q']],
  [
    'storage type',
    /'collections.OrderedDict' is no storage/,
    [storage('collections.OrderedDict', '0', 1)],
  ],
  ['complex', /names 'torch.ComplexFloatStorage'/, [storage('torch.ComplexFloatStorage', '0', 1)]],
  ['dtype called', /calls 'torch.float32'/, [global('torch', 'float32'), ')R']],
  ['prototype', /names 'constructor'|names 'constructor.'/, [global('constructor', '')]],
  ['toString', /names '.toString'/, [global('', 'toString')]],
  ['numpy', /names 'numpy.core.multiarray.scalar'/, [global('numpy.core.multiarray', 'scalar')]],
  ['parameter of nothing', /no tensor/, [global('torch._utils', '_rebuild_parameter'), ')R']],
  ['line', /middle of a name/, ['cos']],
]
for (const [name, message, pieces] of refusals) {
  test(`refuses a pickle: ${name}`, () => bad(message, pickle(...pieces)))
}

test('a pickle of a million opcodes is refused, and large ones take little memory', async () => {
  await bad(
    /more than 1000000 opcodes/,
    Buffer.concat([Buffer.alloc(1_100_000, 'N'), Buffer.from('.')]),
  )
  // 14 MB of a string, in and out.
  const before = process.memoryUsage().rss
  await load(pickle(text('x'.repeat(14 << 20))))
  assert.ok(process.memoryUsage().rss - before < 150 << 20)
  await bad(/at most 16777216 are read/, pickle(text('x'.repeat(17 << 20))))
})

test('deep nesting does not recurse', async () => {
  const root = await load(pickle(']', Buffer.alloc(200_000, Buffer.from([0x85])))) // TUPLE1 of TUPLE1 …
  assert.instance(root, Array)
})

test.run()
