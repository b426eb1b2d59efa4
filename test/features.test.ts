// A VAE's posteriors of a folder of pictures: written once, trained on as often as one likes.
// timeout: 180s
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import * as v from 'valibot'
import { readIndex, readShard } from '../lib/data/feature_files.js'
import { halfTable, toHalf } from '../lib/data/half.js'
import { openData } from '../lib/data/open.js'
import type { DataBatch, OpenData, OpenDataOptions } from '../lib/data/types.js'
import { DiT, type DiTError, extractFeatures, type FeaturesOptions } from '../lib/index.js'
import { runModule } from './helpers/child.js'
import { dit, ditJson } from './helpers/cli.js'
import { difference, sameBits } from './helpers/expected.js'
import { fixture, pipelineWith, rejects, temporaryFolder } from './helpers/files.js'
import { contents, pictureFolder, take } from './helpers/pictures.js'
import { float16, materialise } from './helpers/tensors.js'

const pipeline = fixture('diffusers_pipeline') // its VAE has a factor of 2 and 4 latent channels
const fp32 = { precision: 'fp32', threads: 1, workers: 2 } as const
const size = 16
const shape = [4, 8, 8]
const numbers = 4 * 8 * 8

/** A model of such latents. */
const model: OpenDataOptions['model'] = {
  channels: 4,
  latentSize: [8, 8],
  numClasses: 5,
  classNames: {},
  vae: undefined,
}

/** Three classes of four pictures, one of them damaged. */
async function pictures(): Promise<{ folder: string; damaged: string }> {
  const folder = await pictureFolder(['cat', 'dog', 'owl'], 4)
  const damaged = path.join(folder, 'dog', '1.jpg')
  writeFileSync(damaged, 'no picture')
  return { folder, damaged }
}

function extract(folder: string, given: Partial<FeaturesOptions> = {}) {
  const out = given.out ?? path.join(temporaryFolder(), 'features')
  const options = { vae: pipeline, out, size, shardItems: 5, ...fp32, ...given }
  return extractFeatures(folder, options)
}

/** All tensors of a folder of features, the shards one after the other. */
async function tensors(folder: string): Promise<Record<string, Float32Array>> {
  const { index } = await readIndex(folder)
  const all: Record<string, number[]> = {}
  for (const shard of index.shards.keys()) {
    const { label, moments } = await readShard(folder, index, shard)
    for (const [name, part] of [['label', label] as const, ...moments]) {
      all[name] = [...(all[name] ?? []), ...materialise({ parts: [part] }).data]
    }
  }
  return Object.fromEntries(
    Object.entries(all).map(([name, values]) => [name, Float32Array.from(values)]),
  )
}

async function withData<T>(folder: string, use: (data: OpenData) => Promise<T>): Promise<T> {
  const data = await openData(folder, { model, onBadItem: 'skip' })
  try {
    return await use(data)
  } finally {
    await data.close()
  }
}

test('means are those of dit.encode, deviations those of its draws, also of mirrored pictures', async () => {
  const { folder, damaged } = await pictures()
  const result = await extract(folder, { flip: true })
  assert.equal(
    { ...result, out: '', vae: '', skipped: [] },
    {
      out: '',
      items: 11,
      encoded: 11,
      skipped: [],
      shards: 3,
      shape,
      classNames: ['cat', 'dog', 'owl'],
      vae: '',
    },
  )
  assert.equal(
    result.skipped.map(({ item }) => item),
    [damaged],
  )
  assert.match(result.vae, /diffusers_pipeline/)

  // The same pictures, in the folder's order, as another reader has them.
  const { mean, std, mean_flipped, std_flipped, label } = await tensors(result.out)
  assert.equal([...(label as Float32Array)], [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
  const pixels = await decoded(folder, damaged)
  await using vae = await DiT.load(pipeline, { precision: 'fp32', threads: 1 })
  const scale = vae.vae?.scalingFactor as number
  const cases = [
    [pixels, mean, std],
    [mirrored(pixels), mean_flipped, std_flipped],
  ] as const
  for (const [data, means, deviations] of cases) {
    const images = { data, shape: [11, 3, size, size] }
    const mode = await vae.encode(images)
    const scaled = (means as Float32Array).map((value) => value * scale)
    assert.ok(difference(scaled, mode.data).relL2 < 1e-6)
    const [n, sum, squares] = [8, { z: 0 }, { z: 0 }]
    for (let draw = 0; draw < n; draw++) {
      const { data: drawn } = await vae.encode(images, { sample: true, seed: 100 * draw })
      for (const [i, value] of drawn.entries()) {
        const z = (value / scale - (means?.[i] as number)) / (deviations?.[i] as number)
        sum.z += z
        squares.z += z * z
      }
    }
    const count = n * 11 * numbers
    assert.ok(Math.abs(sum.z / count) < 5 / Math.sqrt(count), `mean ${sum.z / count}`)
    const five = 5 * Math.sqrt(2 / count)
    assert.ok(Math.abs(squares.z / count - 1) < five, `variance ${squares.z / count}`)
  }
})

/** The pictures' numbers in the folder's order, without the damaged one. */
async function decoded(folder: string, damaged: string): Promise<Float32Array> {
  const files = ['cat', 'dog', 'owl']
    .flatMap((name) =>
      readdirSync(path.join(folder, name)).map((file) => path.join(folder, name, file)),
    )
    .filter((file) => file !== damaged)
    .sort()
  const vae = { inChannels: 3, downscale: 2, scalingFactor: 1, shiftFactor: 0 }
  const items = files.map((image) => ({ image, label: 0 }))
  const data = await openData(items.values(), { model: { ...model, vae }, onBadItem: 'error' })
  try {
    const [batch] = await take(data, 1, { batchSize: files.length, flip: false })
    return (batch as DataBatch).x
  } finally {
    await data.close()
  }
}

function mirrored(pixels: Float32Array): Float32Array {
  const out = pixels.slice()
  for (let row = 0; row < out.length; row += size) out.subarray(row, row + size).reverse()
  return out
}

test('as training data: every row of every shard once an epoch, mirrored ones where asked for', async () => {
  const { folder } = await pictures()
  const { out } = await extract(folder, { flip: true })
  const all = await tensors(out)
  const row = (name: string, i: number) => {
    return (all[name] as Float32Array).subarray(i * numbers, (i + 1) * numbers)
  }
  await withData(out, async (data) => {
    assert.equal([data.kind, data.length, data.numClasses], ['features', 11, 3])
    assert.equal([data.shape, data.classNames], [shape, ['cat', 'dog', 'owl']])
    assert.equal([data.scale, data.shift], [0.18215, 0])
    for (const flip of [false, true]) {
      const epochs = await take(data, 4, { batchSize: 11, flip })
      let flipped = 0
      for (const { x, deviation, labels } of epochs) {
        const seen = new Set<number>()
        for (const [i, label] of labels.entries()) {
          const own = x.subarray(i * numbers, (i + 1) * numbers)
          const found = [...Array(22).keys()].find((j) => {
            return sameBits(own, row(j < 11 ? 'mean' : 'mean_flipped', j % 11))
          }) as number
          const std = row(found < 11 ? 'std' : 'std_flipped', found % 11)
          assert.ok(
            sameBits((deviation as Float32Array).subarray(i * numbers, (i + 1) * numbers), std),
          )
          assert.is(label, all.label?.[found % 11])
          seen.add(found % 11)
          if (found >= 11) flipped++
        }
        assert.is(seen.size, 11)
      }
      if (flip) assert.ok(flipped > 8 && flipped < 36, `${flipped} of 44 mirrored`)
      else assert.is(flipped, 0)
    }
    const whole = contents(await take(data, 8, { batchSize: 3 }))
    assert.equal(contents(await take(data, 5, { batchSize: 3, position: 9 })), whole.slice(3))
  })
})

test('a model is trained on features', async () => {
  const { folder } = await pictures()
  const { out } = await extract(folder)
  const config = { depth: 1, hidden: 32, heads: 2, latentSize: 8, channels: 4, numClasses: 3 }
  await using fresh = await DiT.create(config, { precision: 'fp32', threads: 1, seed: 1 })
  const losses: number[] = []
  for await (const event of fresh.train(out, { steps: 3, globalBatch: 4, seed: 1 })) {
    if (event.type === 'step') losses.push(event.loss)
  }
  assert.is(losses.length, 3)
  assert.ok(losses.every(Number.isFinite))
  assert.equal(fresh.classNames, { 0: 'cat', 1: 'dog', 2: 'owl' })
})

test('in half precision, half the bytes, rounded', async () => {
  const { folder } = await pictures()
  const whole = await tensors((await extract(folder, { flip: true })).out)
  const { out } = await extract(folder, { flip: true, dtype: 'fp16' })
  const half = await tensors(out)
  for (const name of ['mean', 'std', 'mean_flipped', 'std_flipped'] as const) {
    for (const [i, value] of (whole[name] as Float32Array).entries()) {
      const off = Math.abs(value - (half[name]?.[i] as number))
      assert.ok(off <= Math.max(Math.abs(value) * 2 ** -11, 2 ** -25), `${name}: ${value}`)
    }
  }
  await withData(out, async (data) => {
    const [batch] = await take(data, 1, { batchSize: 11, flip: false })
    const means = new Set((half.mean as Float32Array).map(Math.fround))
    assert.ok(batch?.x.every((value) => means.has(value)))
  })
})

test('half precision: every number there is, and every rounding between two of them', () => {
  const table = halfTable()
  const out = new Uint16Array(1)
  const half = (value: number) => {
    toHalf(Float32Array.of(value), out)
    return out[0] as number
  }
  for (let bits = 0; bits < 65536; bits++) {
    const value = table[bits] as number
    assert.ok(Object.is(value, float16(bits)), String(bits))
    if (Number.isNaN(value)) assert.ok(Number.isNaN(table[half(value)]))
    else assert.is(half(value), bits)
    if ((bits & 0x7fff) >= 0x7bff) continue
    const next = table[bits + 1] as number
    const middle = (value + next) / 2
    assert.is(half(middle), bits & 1 ? bits + 1 : bits, `the tie above ${value}`)
    assert.is(half(middle + (next - value) / 256), bits + 1)
    assert.is(half(middle - (next - value) / 256), bits)
  }
  assert.is(half(65519.99), 0x7bff)
  assert.is(half(65520), 0x7c00)
  assert.is(half(-1e30), 0xfc00)
  assert.is(half(1e-30), 0)
})

/** The files of a folder of features, byte for byte. */
function bytesOf(folder: string): Record<string, string> {
  const files = readdirSync(folder).sort()
  return Object.fromEntries(
    files.map((name) => [name, readFileSync(path.join(folder, name), 'hex')]),
  )
}

test('killed between two shards or within one, it goes on, and nothing is different', async () => {
  const { folder } = await pictures()
  const whole = await extract(folder, { flip: true, shardItems: 2 })
  const options = { vae: pipeline, size, shardItems: 2, flip: true, ...fp32 }
  for (const killAt of [2, 5, 6]) {
    const out = path.join(temporaryFolder(), 'features')
    const killed = await runModule(`
      import { extractFeatures } from './lib/index.ts'
      await extractFeatures(${JSON.stringify(folder)}, {
        ...${JSON.stringify({ ...options, out })},
        onProgress(event) {
          if (event.phase === 'encode' && event.done >= ${killAt}) process.kill(process.pid, 'SIGKILL')
        },
      })
    `)
    assert.is(killed.signal, 'SIGKILL', killed.stderr)
    const left = readdirSync(out).filter((name) => name.endsWith('.safetensors'))
    assert.ok(left.length < 6, `${left.length} shards`)
    await rejects(
      () => openData(out, { model, onBadItem: 'skip' }),
      'ERR_DIT_FILE',
      /not complete. Run dit features again/,
    )
    writeFileSync(path.join(out, 'features-00005.safetensors.123-abc.part'), 'half a shard')
    const progress: number[] = []
    const again = await extractFeatures(folder, {
      ...options,
      out,
      onProgress: (event) => event.phase === 'encode' && progress.push(event.done),
    })
    assert.is(again.items, 11)
    assert.ok(again.encoded < 11 || left.length === 0, `${again.encoded} encoded again`)
    assert.is(progress.at(-1), 12)
    assert.equal(
      progress,
      [...progress].sort((a, b) => a - b),
    )
    assert.equal(bytesOf(out), bytesOf(whole.out))
  }
  const done = await extractFeatures(folder, { ...options, out: whole.out })
  assert.equal([done.items, done.encoded], [11, 0])
})

test('an abort ends it with its reason, and it goes on later', async () => {
  const { folder } = await pictures()
  const out = path.join(temporaryFolder(), 'features')
  const controller = new AbortController()
  const reason = new Error('enough')
  const error = await extract(folder, {
    out,
    shardItems: 2,
    signal: controller.signal,
    onProgress: (event) => event.phase === 'encode' && event.done > 4 && controller.abort(reason),
  }).then(
    () => undefined,
    (thrown) => thrown,
  )
  assert.is(error, reason)
  const { items, encoded } = await extract(folder, { out, shardItems: 2 })
  assert.is(items, 11)
  assert.ok(encoded < 11)
})

test('what was begun in another way is not gone on with, and the error names what changed', async () => {
  const { folder } = await pictures()
  const { out } = await extract(folder)
  const before = bytesOf(out)
  const otherVae = pipelineWith('vae/config.json', (json) => {
    json.scaling_factor = 0.5
  })
  const changes: [given: Partial<FeaturesOptions>, named: RegExp][] = [
    [{ size: 32 }, /the shape of latents \(was \[4,8,8\], is \[4,16,16\]\), size \(was/],
    [{ flip: true }, /flip \(was false, is true\)/],
    [{ dtype: 'fp16' }, /dtype \(was 'fp32', is 'fp16'\)/],
    [{ shardItems: 6 }, /shardItems \(was 5, is 6\)/],
    [{ vae: otherVae }, /: the VAE's scaling \(was 0.18215, is 0.5\)\. Give/],
  ]
  for (const [given, named] of changes) {
    await rejects(() => extract(folder, { ...given, out }), 'ERR_DIT_OPTION', named)
  }
  cpSync(path.join(folder, 'cat', '0.jpg'), path.join(folder, 'cat', 'new.jpg'))
  await rejects(
    () => extract(folder, { out }),
    'ERR_DIT_OPTION',
    /the number of pictures \(was 12, is 13\), the names of the files/,
  )
  assert.equal(bytesOf(out), before)
})

test('folders, options and pictures that cannot be used', async () => {
  const { folder, damaged } = await pictures()
  const out = path.join(temporaryFolder(), 'features')
  await rejects(() => extract('/no/such'), 'ERR_DIT_FILE', /no such file or folder/)
  await rejects(
    () => extract(folder, { size: 17 }),
    'ERR_DIT_OPTION',
    /multiples of the VAE's factor, 2, for size/,
  )
  await rejects(() => extract(folder, { shardItems: 0 }), 'ERR_DIT_OPTION', /shardItems/)
  await rejects(() => extract(folder, { vae: '/no/vae' }), 'ERR_DIT_FILE', /no file or folder/)
  await rejects(
    () => extract(folder, { out, onBadItem: 'error' }),
    'ERR_DIT_FORMAT',
    /dog\/1.jpg cannot be used/,
  )
  const other = temporaryFolder()
  writeFileSync(path.join(other, 'thesis.tex'), '')
  await rejects(
    () => extract(folder, { out: other }),
    'ERR_DIT_OPTION',
    /not empty and holds no features \(thesis.tex\)/,
  )
  assert.equal(readdirSync(other), ['thesis.tex'])
  const bad = temporaryFolder()
  mkdirSync(path.join(bad, 'only'))
  for (const i of [0, 1, 2]) cpSync(damaged, path.join(bad, 'only', `${i}.jpg`))
  await rejects(() => extract(bad), 'ERR_DIT_FORMAT', /Not one of 3 items in a row could be used/)
})

test('a shard of damaged pictures alone has no rows', async () => {
  const folder = await pictureFolder(['a', 'b'], 4)
  for (const i of [0, 1]) writeFileSync(path.join(folder, 'b', `${i}.jpg`), '')
  const { out, items, shards, skipped } = await extract(folder, { shardItems: 2 })
  assert.equal([items, shards, skipped.length], [6, 4, 2])
  await withData(out, async (data) => {
    assert.is(data.length, 6)
    const [batch] = await take(data, 1, { batchSize: 6 })
    assert.equal([...(batch?.labels ?? [])].sort(), [0, 0, 0, 0, 1, 1])
  })
})

test('features that do not fit the model, or are damaged', async () => {
  const { folder } = await pictures()
  const { out } = await extract(folder)
  const open = (change: Partial<OpenDataOptions['model']>) => () =>
    openData(out, { model: { ...model, ...change }, onBadItem: 'skip' })
  await rejects(
    open({ latentSize: [16, 16] }),
    'ERR_DIT_SHAPE',
    /\[4, 8, 8\], but the model takes \[4, 16, 16\]/,
  )
  await rejects(open({ numClasses: 2 }), 'ERR_DIT_OPTION', /has 3 classes, the model 2/)
  const vae = { inChannels: 3, downscale: 2, scalingFactor: 0.5, shiftFactor: 0 }
  await rejects(
    open({ vae }),
    'ERR_DIT_OPTION',
    /scaling 0.18215 and shift 0, but the model's has 0.5/,
  )

  const shard = path.join(out, 'features-00001.safetensors')
  const bytes = readFileSync(shard)
  const index = readFileSync(path.join(out, 'features.json'), 'utf8')
  const broken: [name: string, change: () => void, code: DiTError['code'], message: RegExp][] = [
    ['a cut shard', () => truncateSync(shard, 1000), 'ERR_DIT_FORMAT', /00001.safetensors/],
    ['a missing shard', () => rmSync(shard), 'ERR_DIT_FILE', /00001.safetensors/],
    [
      'another shard',
      () => cpSync(path.join(out, 'features-00000.safetensors'), shard),
      'ERR_DIT_FORMAT',
      /00001.safetensors: expected items 5 to 10 but got 0 to 5/,
    ],
    [
      'a label',
      () => writeFileSync(shard, withLabel(bytes, 7)),
      'ERR_DIT_FORMAT',
      /expected labels from 0 to 2 but row 0 has 7/,
    ],
    [
      'an index',
      () =>
        writeFileSync(path.join(out, 'features.json'), index.replace('"flip": false', '"flip": 1')),
      'ERR_DIT_FORMAT',
      /features.json: made.flip/,
    ],
  ]
  for (const [name, change, code, message] of broken) {
    change()
    await rejects(open({}), code, message).catch((error) => {
      throw new Error(name, { cause: error })
    })
    writeFileSync(shard, bytes)
    writeFileSync(path.join(out, 'features.json'), index)
  }
  await (await open({})()).close()
})

/** A shard whose first label is another: labels are the first tensor. */
function withLabel(shard: Buffer, label: number): Buffer {
  const changed = Buffer.from(shard)
  changed.writeInt32LE(label, 8 + Number(changed.readBigUInt64LE()))
  return changed
}

// ---- the command ----

const resultSchema = v.strictObject({
  out: v.string(),
  items: v.literal(11),
  encoded: v.literal(11),
  skipped: v.array(v.strictObject({ item: v.string(), reason: v.string() })),
  shards: v.literal(2),
  shape: v.strictTuple([v.literal(4), v.literal(8), v.literal(12)]),
  classNames: v.array(v.string()),
  vae: v.string(),
  seconds: v.number(),
})

test('dit features', async () => {
  const { folder, damaged } = await pictures()
  const out = path.join(temporaryFolder(), 'made')
  const args = ['features', folder, '--vae', pipeline, '--out', out, '--size', '16x24', '--flip']
  const where = ['--shard-items', '8', '--workers', '1', '--precision', 'fp32', '--threads', '1']
  const result = v.parse(resultSchema, await ditJson(...args, ...where))
  assert.is(result.skipped[0]?.item, damaged)
  assert.equal(readdirSync(out).sort(), [
    'features-00000.safetensors',
    'features-00001.safetensors',
    'features.json',
  ])

  const again = await dit([...args, ...where])
  assert.is(again.status, 0, again.stderr)
  assert.match(again.stdout, /features +.*made: 11 of 4×8×12, 2 files\n/)
  assert.match(again.stdout, /skipped +.*dog\/1\.jpg: /)
  assert.match(again.stdout, /0 images encoded\n$/)

  const changed = await dit([...args, ...where, '--dtype', 'fp16'])
  assert.is(changed.status, 2)
  assert.match(changed.stderr, /^dit: .*dtype \(was 'fp32', is 'fp16'\).*\(ERR_DIT_OPTION\)\n$/)
  const unknown = await dit(['features', folder, '--vae', pipeline])
  assert.is(unknown.status, 2)
  assert.match(unknown.stderr, /--out/)
})

test.run()
