// timeout: 300s
// Damaged files: truncated at random places, bytes changed, removed, repeated, overwritten. Whatever
// comes of it is a valid listing within the file or a DiTError, in little time and memory.
// The cases are the same in every run.

import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiTError } from '../lib/errors.js'
import { readSafetensors } from '../lib/formats/safetensors.js'
import { resolveSource } from '../lib/formats/source.js'
import { elementCount } from '../lib/formats/tensor.js'
import { readTorch, TorchTensor } from '../lib/formats/torch.js'
import { itemSize, type TensorPart } from '../lib/formats/types.js'
import { fixture, temporaryFolder } from './helpers/files.js'
import { torchFile } from './helpers/torch.js'

const casesEach = 500
/** Longest that one case may take, in ms; usual is 1. */
const timeLimit = 5000
/** Most that memory may grow, in bytes: after all cases of a test, and at any time within them. */
const growthLimit = 16 << 20
const peakLimit = 256 << 20

const folder = temporaryFolder()

/** mulberry32: uniform in [0, 1), from a 32-bit seed. */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let z = Math.imul(state ^ (state >>> 15), state | 1)
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61)
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Damages the bytes from `begin` to `end` in one of several ways. */
function damage(bytes: Buffer, begin: number, end: number, random: () => number): Buffer {
  const pick = (low: number, high: number) => low + Math.floor(random() * (high - low))
  const at = pick(begin, end)
  const kind = pick(0, 6)
  if (kind < 2) return bytes.subarray(0, at)
  const copy = Buffer.from(bytes)
  if (kind === 2) {
    for (let i = pick(1, 9); i > 0; --i) copy[pick(begin, end)] = pick(0, 256)
  } else if (kind === 3) {
    copy[at] = (copy[at] ?? 0) ^ (1 << pick(0, 8))
  } else if (kind === 4) {
    copy.fill(pick(0, 2) * 255, at, Math.min(at + pick(1, 9), end))
  } else {
    const length = pick(1, 20)
    const cut = [bytes.subarray(0, at), bytes.subarray(at + length)]
    const repeated = [bytes.subarray(0, at + length), bytes.subarray(at)]
    return Buffer.concat(random() < 0.5 ? cut : repeated)
  }
  return copy
}

/** Fails when a tensor lies outside its file. */
function checkPart(part: TensorPart, size: number): void {
  const { offset, shape, strides, dtype } = part
  const count = elementCount(shape)
  assert.ok(Number.isSafeInteger(count) && count >= 0)
  const last = shape.reduce((index, n, i) => index + (n - 1) * (strides[i] ?? Number.NaN), 0)
  const end = count === 0 ? offset : offset + (last + 1) * itemSize[dtype]
  assert.ok(offset >= 0 && end <= size, `bytes ${offset} to ${end} of ${size}`)
}

function checkTorch(value: unknown, size: number, seen = new Set<unknown>()): void {
  if (value instanceof TorchTensor) checkPart(value.part, size)
  if (seen.has(value) || !(value instanceof Map || Array.isArray(value))) return
  seen.add(value)
  for (const item of value.values()) checkTorch(item, size, seen)
}

setFlagsFromString('--expose-gc')
const collect: () => void = runInNewContext('gc')

/** Runs the cases of one parser and returns how many were accepted. */
async function fuzz(
  seed: number,
  make: (random: () => number) => Buffer,
  parse: (file: string, size: number) => Promise<void>,
): Promise<number> {
  const random = generator(seed)
  const file = path.join(folder, `${seed}`)
  let accepted = 0
  let peak = 0
  let before: NodeJS.MemoryUsage | undefined
  for (let i = 0; i < casesEach; ++i) {
    const bytes = make(random)
    writeFileSync(file, bytes)
    const start = performance.now()
    try {
      await parse(file, bytes.length)
      ++accepted
    } catch (error) {
      if (!(error instanceof DiTError)) {
        const copy = path.join(folder, 'failing')
        writeFileSync(copy, bytes)
        throw new Error(`case ${i} of seed ${seed}: ${(error as Error).stack}`)
      }
      assert.is(error.code, 'ERR_DIT_FORMAT', error.message)
      assert.ok(error.message.startsWith(file) && error.message.length < 4000, error.message)
    }
    assert.ok(performance.now() - start < timeLimit, `case ${i} of seed ${seed} takes too long`)
    if (i === 50) {
      collect()
      before = process.memoryUsage() // what the first cases leave behind is code
    }
    if (before) peak = Math.max(peak, process.memoryUsage().rss - before.rss)
  }
  collect()
  const after = process.memoryUsage()
  assert.ok(before)
  assert.ok(
    after.heapUsed - before.heapUsed < growthLimit,
    `heap: ${after.heapUsed - before.heapUsed}`,
  )
  assert.ok(after.arrayBuffers - before.arrayBuffers < growthLimit)
  assert.ok(peak < peakLimit, `grew by ${peak}`)
  return accepted
}

test('safetensors headers', async () => {
  const bytes = readFileSync(
    fixture('diffusers_pipeline/transformer/diffusion_pytorch_model.safetensors'),
  )
  const header = 8 + Number(bytes.readBigUInt64LE())
  const accepted = await fuzz(
    1,
    (random) => damage(bytes, 0, random() < 0.8 ? header : bytes.length, random),
    async (file, size) => {
      const { tensors } = await readSafetensors(file)
      for (const part of tensors.values()) checkPart(part, size)
    },
  )
  assert.ok(accepted < casesEach / 2, `${accepted} accepted`)
})

test('small safetensors headers', async () => {
  const names = ['negative_shape', 'overlapping_offsets', 'duplicate_key', 'not_json']
  const files = names.map((name) => readFileSync(fixture(`bad_inputs/${name}.safetensors`)))
  files.push(readFileSync(fixture('pt_checkpoint/odd_tensors.safetensors')))
  await fuzz(
    2,
    (random) => {
      const bytes = files[Math.floor(random() * files.length)] as Buffer
      return damage(bytes, 0, bytes.length, random)
    },
    async (file, size) => {
      const { tensors } = await readSafetensors(file)
      for (const part of tensors.values()) checkPart(part, size)
    },
  )
})

test('zip archives', async () => {
  const files = [
    'pt_checkpoint/odd_tensors.pt',
    'bad_inputs/short_storage.pt',
    'pt_checkpoint/state_dict.pt',
  ]
  const archives = files.map((name) => readFileSync(fixture(name)))
  const accepted = await fuzz(
    3,
    (random) => {
      const bytes = archives[Math.floor(random() * archives.length)] as Buffer
      // The directory at the end, of which most of the parser's work depends, or anywhere.
      const begin = random() < 0.6 ? bytes.lastIndexOf('PK\x01\x02', -1000) : 0
      return damage(bytes, Math.max(begin, 0), bytes.length, random)
    },
    async (file, size) => checkTorch(await readTorch(file), size),
  )
  assert.ok(accepted < casesEach / 2, `${accepted} accepted`)
})

test('pickles', async () => {
  // The pickle of a training checkpoint's first kilobytes and the small one, in archives of their own.
  const odd = readFileSync(fixture('pt_checkpoint/odd_tensors.pt'))
  const begin = odd.indexOf(Buffer.from([0x80, 2, 0x63]))
  const pickle = odd.subarray(begin, odd.indexOf('PK\x07\x08', begin))
  const storages = Object.fromEntries(
    Array.from({ length: 11 }, (_, key) => [key, Buffer.alloc(480)]),
  )
  const whole = torchFile(pickle, storages)
  const file = path.join(folder, 'whole.pt')
  writeFileSync(file, whole)
  assert.is(((await readTorch(file)) as Map<string, unknown>).size, 15)
  const accepted = await fuzz(
    4,
    (random) => torchFile(damage(pickle, 0, pickle.length, random), storages),
    async (damaged, size) => checkTorch(await readTorch(damaged), size),
  )
  assert.ok(accepted < casesEach / 2, `${accepted} accepted`)
})

test('random pickles of valid opcodes', async () => {
  const opcodes = Buffer.from(
    'N\x88\x89)]}\x8f(t\x85\x86\x87ae01s2uq\x00h\x00bR\x81K\x05X\x01\x00\x00\x00aJ',
    'latin1',
  )
  const globals = [
    'collections\nOrderedDict',
    'argparse\nNamespace',
    'torch\nSize',
    'torch._utils\n_rebuild_tensor_v2',
    'os\nsystem',
  ]
  await fuzz(
    5,
    (random) => {
      const pieces: Buffer[] = []
      for (let i = Math.floor(random() * 200); i > 0; --i) {
        const global = globals[Math.floor(random() * globals.length * 20)]
        const at = Math.floor(random() * opcodes.length)
        pieces.push(
          global === undefined ? opcodes.subarray(at, at + 1) : Buffer.from(`c${global}\n`),
        )
      }
      return torchFile(Buffer.concat([...pieces, Buffer.from('.')]))
    },
    async (file, size) => checkTorch(await readTorch(file), size),
  )
})

test('whole loads', async () => {
  const bases = ['dit_tiny_forward/micro24/model.safetensors', 'pt_checkpoint/train_checkpoint.pt']
  const bytes = bases.map((name) => readFileSync(fixture(name)))
  await fuzz(
    6,
    (random) => {
      const base = bytes[Math.floor(random() * bytes.length)] as Buffer
      return damage(base, 0, random() < 0.7 ? 6000 : base.length, random)
    },
    async (file, size) => {
      const { dit } = await resolveSource(file, {
        config: { heads: 2, numClasses: 5, latentSize: 8 },
      })
      for (const { parts } of dit.tensors) for (const part of parts) checkPart(part, size)
    },
  )
})

test.run()
