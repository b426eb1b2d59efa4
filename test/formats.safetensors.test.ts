import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readSafetensors, safetensorsLayout } from '../lib/formats/safetensors.js'
import { sliceRows } from '../lib/formats/tensor.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { materialise } from './helpers/tensors.js'

const folder = temporaryFolder()
let files = 0

/** A safetensors file of a JSON text and data. */
function write(json: string | Uint8Array, data = 0): string {
  const header = Buffer.from(json)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  const file = path.join(folder, `${++files}.safetensors`)
  writeFileSync(file, Buffer.concat([length, header, Buffer.alloc(data)]))
  return file
}

const bad = (message: RegExp, file: string) =>
  rejects(() => readSafetensors(file), 'ERR_DIT_FORMAT', message)
const entry = (begin: number, end: number, shape = [(end - begin) / 4], dtype = 'F32') =>
  JSON.stringify({ dtype, shape, data_offsets: [begin, end] })

test('reads names, types, shapes and offsets', async () => {
  const file = fixture('dit_tiny_forward/micro24/model.safetensors')
  const { tensors, metadata } = await readSafetensors(file)
  assert.is(tensors.size, 32)
  const qkv = tensors.get('blocks.1.attn.qkv.weight')
  assert.equal(qkv?.shape, [72, 24])
  assert.equal(qkv?.strides, [24, 1])
  assert.is(qkv?.dtype, 'F32')
  assert.is(qkv?.file, file)
  assert.equal([...metadata], [['format', 'pt']])
})

test('reads metadata, scalars, empty tensors, every type', async () => {
  const json = `{"__metadata__":{"format":"pt"},"a":${entry(0, 4, [])},"b":${entry(4, 4, [0, 3])},
    "c":${entry(4, 6, [2], 'F8_E4M3')},"d":${entry(6, 8, [1], 'BF16')}}`
  const { tensors, metadata } = await readSafetensors(write(json, 8))
  assert.equal([...metadata], [['format', 'pt']])
  assert.equal(tensors.get('a')?.strides, [])
  assert.equal(tensors.get('b')?.shape, [0, 3])
  assert.is(tensors.get('d')?.offset, 8 + Buffer.byteLength(json) + 6)
})

test('names of any kind are data', async () => {
  const { tensors } = await readSafetensors(
    write(`{"__proto__":${entry(0, 4)},"constructor":${entry(4, 8)}}`, 8),
  )
  assert.equal([...tensors.keys()], ['__proto__', 'constructor'])
  assert.is(Object.getPrototypeOf({}), Object.prototype)
})

const refusals: [string, RegExp, string | Uint8Array, number][] = [
  ['overlap', /'a' and 'b' overlap/, `{"a":${entry(0, 8)},"b":${entry(4, 12)}}`, 12],
  ['hole', /bytes 4 to 8 belong to no tensor/, `{"a":${entry(0, 4)},"b":${entry(8, 12)}}`, 12],
  ['bytes at the end', /last 4 bytes of data belong to no tensor/, `{"a":${entry(0, 4)}}`, 8],
  ['cut off', /beyond the 4 bytes of data/, `{"a":${entry(0, 8)}}`, 4],
  ['size', /needs 12 bytes but data_offsets \[0, 8\] say 8/, `{"a":${entry(0, 8, [3])}}`, 8],
  ['negative', /shape\.0.*>=0/, `{"a":${entry(0, 8, [-2])}}`, 8],
  ['fraction', /shape\.0/, `{"a":${entry(0, 8, [1.5])}}`, 8],
  ['too large', /too large/, `{"a":${entry(0, 8, [2 ** 40, 2 ** 40])}}`, 8],
  ['dtype', /unknown dtype 'F42'/, `{"a":${entry(0, 8, [2], 'F42')}}`, 8],
  [
    'dtype of the prototype',
    /unknown dtype 'toString'/,
    `{"a":${entry(0, 8, [2], 'toString')}}`,
    8,
  ],
  ['duplicate', /has the key 'a' twice/, `{"a":${entry(0, 4)},"\\u0061" :${entry(4, 8)}}`, 8],
  ['duplicate inside', /has the key 'dtype' twice/, '{"a":{"dtype":"F32","dtype":"F64"}}', 8],
  ['more fields', /tensor 'a'/, '{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}', 4],
  ['array', /not a JSON object/, '[1,2]', 0],
  ['metadata', /__metadata__ is not an object of strings/, '{"__metadata__":{"a":1}}', 0],
  ['metadata text', /__metadata__ is not an object of strings/, '{"__metadata__":"ab"}', 0],
  ['JSON', /not valid JSON/, '{"a":', 0],
  ['UTF-8', /not UTF-8/, Buffer.from([0x7b, 0xff, 0x7d]), 0],
  ['nesting', /nested deeper/, '['.repeat(100_000), 0],
]
for (const [name, message, json, data] of refusals) {
  test(`refuses: ${name}`, () => bad(message, write(json, data)))
}

test('refuses a header longer than the file or the limit before it allocates', async () => {
  const huge = path.join(folder, 'huge.safetensors')
  for (const length of [2n ** 60n, 2n ** 31n, 17n * 2n ** 20n, 100n]) {
    const bytes = Buffer.alloc(64)
    bytes.writeBigUInt64LE(length)
    writeFileSync(huge, bytes)
    const before = process.memoryUsage().arrayBuffers
    await bad(/header is said to have/, huge)
    assert.ok(process.memoryUsage().arrayBuffers - before < 1 << 20)
  }
})

const causes: [string, RegExp][] = [
  ['absurd_header_length', /1152921504606846976 bytes; the file has 96/],
  ['duplicate_key', /key 'a' twice/],
  ['negative_shape', /-8/],
  ['not_json', /not valid JSON/],
  ['offset_out_of_range', /tensor 'b': data_offsets \[16, 48\] reach beyond/],
  ['overlapping_offsets', /'a' and 'b' overlap/],
  ['size_mismatch', /F32 \[5\] needs 20 bytes/],
  ['too_short', /this has 3/],
  ['unknown_dtype', /unknown dtype 'F42'/],
]
for (const [name, message] of causes) {
  test(`bad_inputs/${name}`, () => bad(message, fixture(`bad_inputs/${name}.safetensors`)))
}

test('other things than a safetensors file', async () => {
  const pointer = path.join(folder, 'pointer.safetensors')
  writeFileSync(pointer, 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n')
  await bad(/git lfs pull/, pointer)
  await rejects(
    () => readSafetensors(path.join(folder, 'none')),
    'ERR_DIT_FILE',
    /no such file.*ENOENT/,
  )
  mkdirSync(path.join(folder, 'folder'))
  await rejects(
    () => readSafetensors(path.join(folder, 'folder')),
    'ERR_DIT_FILE',
    /it is a folder.*EISDIR/,
  )
})

test('the writer makes what the reader reads', async () => {
  const layout = safetensorsLayout(
    [
      { name: 'w', dtype: 'F32', shape: [2, 3] },
      { name: 'ü"\\', dtype: 'BF16', shape: [] },
      { name: 'none', dtype: 'F32', shape: [0] },
    ],
    { format: 'pt' },
  )
  assert.is(layout.header.length % 8, 0)
  assert.is(layout.fileBytes, layout.header.length + 26)
  const file = path.join(folder, 'written.safetensors')
  const data = Buffer.alloc(26)
  for (let i = 0; i < 6; ++i) data.writeFloatLE(i, 4 * i)
  writeFileSync(file, Buffer.concat([layout.header, data]))
  const { tensors, metadata } = await readSafetensors(file)
  assert.equal([...tensors.keys()], ['w', 'ü"\\', 'none'])
  assert.equal(
    layout.tensors.map(({ offset }) => offset),
    [...tensors.values()].map(({ offset }) => offset),
  )
  assert.is(metadata.get('format'), 'pt')
  const w = tensors.get('w')
  assert.ok(w)
  assert.equal([...materialise({ parts: [w] }).data], [0, 1, 2, 3, 4, 5])
  assert.equal([...materialise({ parts: sliceRows([w, w], 1, 3) }).data], [3, 4, 5, 0, 1, 2])
  assert.throws(
    () => safetensorsLayout([...'aa'].map((name) => ({ name, dtype: 'F32', shape: [] }))),
    /distinct names/,
  )
})

test.run()
