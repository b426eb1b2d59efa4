// Many samples in one file, by any number of processes: the same bits, whoever made them.
// timeout: 180s
import { spawn, spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { npzBytes } from '../lib/formats/npz.js'
import { DiT, type SampleSetOptions, sampleSet } from '../lib/index.js'
import { runModuleWithin } from './helpers/child.js'
import { dit, ditJson } from './helpers/cli.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { readNpz } from './helpers/npz.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const main = path.join(root, 'dist/cli/main.js')
const pipeline = fixture('diffusers_pipeline') // five classes, 16×16 pixels of three channels
const cpu = { precision: 'fp32', threads: 1 } as const
const quick = { steps: 2, guidance: 2 } as const

const newSet = () => path.join(temporaryFolder(), 'samples.npz')
const partNames = (out: string) =>
  readdirSync(`${out}.parts`).filter((name) => /^part-\d+\.safetensors$/.test(name))

async function withModel<T>(use: (dit: DiT) => Promise<T>): Promise<T> {
  await using model = await DiT.load(pipeline, cpu)
  return await use(model) // before it is closed
}

/** A set of 50 images in the making of one process. */
const make = (out: string, options: Partial<SampleSetOptions> = {}) =>
  withModel((model) => sampleSet(model, { out, count: 50, ...quick, ...options }))

// ---- what is in the file ----

test('images, labels and what tells how they were made', async () => {
  const out = newSet()
  const events: string[] = []
  const result = await make(out, {
    seed: 7,
    onProgress: ({ phase, done, total }) => events.push(`${phase} ${done}/${total}`),
  })
  const sidecar = out.replace('.npz', '.json')
  assert.equal(result, { out, sidecar, count: 50, made: 50, missing: 0 })
  assert.is(events[0], 'sample 1/50')
  assert.equal(events.slice(49), ['sample 50/50', ...[16, 32, 48, 50].map((n) => `join ${n}/50`)])
  assert.equal(readdirSync(path.dirname(out)).sort(), ['samples.json', 'samples.npz'])

  const arrays = await readNpz(out)
  assert.equal([...arrays.keys()], ['arr_0', 'arr_1'])
  const images = arrays.get('arr_0')
  const labels = arrays.get('arr_1')
  assert.equal([images?.dtype, images?.shape], ['|u1', [50, 16, 16, 3]])
  assert.equal([labels?.dtype, labels?.shape], ['<i8', [50]])
  assert.equal(
    Array.from({ length: 50 }, (_, k) => Number(labels?.data.readBigInt64LE(8 * k))),
    Array.from({ length: 50 }, (_, k) => k % 5),
  )
  await withModel(async (model) => {
    for (const k of [0, 15, 16, 49]) {
      const [image] = await model.sample(k % 5, { ...quick, seed: 7 + k })
      const bytes = 16 * 16 * 3
      const data = images?.data.subarray(k * bytes, (k + 1) * bytes)
      assert.equal(new Uint8Array(data ?? []), image?.data, `image ${k}`)
    }
    const made = JSON.parse(readFileSync(sidecar, 'utf8'))
    assert.is(made.weights, await model.weightsHash())
    const { count, sampler, steps, guidance, seed, precision, device, ditNative } = made
    assert.equal(
      { count, sampler, steps, guidance, seed, precision, device },
      { count: 50, sampler: 'dpm++', ...quick, seed: '7', precision: 'fp32', device: 'cpu' },
    )
    assert.match(ditNative, /^\d+\.\d+\.\d+/)
    assert.match(made.machines.join(), /, (generic|avx2|avx512|avx512bf16)$/)
    const digest = spawnSync('sha256sum', [out], { encoding: 'utf8' }).stdout.split(' ')[0]
    assert.is(made.sha256, digest)
  })
})

test('NumPy reads it, and a row of it without the rest', async () => {
  const out = newSet()
  await make(out, { labels: ['label 1', 4] })
  const program = `
import sys, zipfile, numpy
with numpy.load(sys.argv[1]) as npz:
    images, labels = npz['arr_0'], npz['arr_1']
    print(npz.files, images.shape, images.dtype, labels.dtype, labels[:3].tolist())
print(zipfile.ZipFile(sys.argv[1]).testzip())
with zipfile.ZipFile(sys.argv[1]).open('arr_0.npy') as array:
    numpy.lib.format.read_magic(array)
    print(numpy.lib.format.read_array_header_1_0(array))
    print(array.read(images[0].size) == images[0].tobytes())
`
  const args = ['-c', program, out]
  const { stdout, stderr, status } = spawnSync('python3', args, { encoding: 'utf8' })
  assert.is(status, 0, `python3 with NumPy (python3-numpy) is needed: ${stderr}`)
  assert.equal(stdout.trim().split('\n'), [
    "['arr_0', 'arr_1'] (50, 16, 16, 3) uint8 int64 [1, 4, 1]",
    'None',
    "((50, 16, 16, 3), False, dtype('uint8'))",
    'True',
  ])
})

test('labels drawn at random follow from the seed, and are all drawn', async () => {
  const draw = async (seed: number) => {
    const out = newSet()
    await make(out, { labels: 'random', seed, steps: 1, guidance: 1 })
    const labels = (await readNpz(out)).get('arr_1')?.data ?? Buffer.alloc(0)
    return Array.from({ length: 50 }, (_, k) => Number(labels.readBigInt64LE(8 * k)))
  }
  const first = await draw(1)
  assert.equal(await draw(1), first)
  assert.not.equal(await draw(2), first)
  assert.equal([...new Set(first)].sort(), [0, 1, 2, 3, 4])
})

test('the zip file has 64-bit sizes, and who stops reading closes what is read', async () => {
  let closed = 0
  async function* zeros() {
    try {
      for (;;) yield new Uint8Array(1 << 16)
    } finally {
      closed++
    }
  }
  const big = { name: 'arr_0', dtype: 'uint8', shape: [3, 2 ** 31], data: zeros } as const
  let bytes = 0
  for await (const piece of npzBytes([big])) {
    bytes += piece.length
    if (bytes > 1 << 20) break
  }
  await sleep(20)
  assert.is(closed, 1)

  async function* six() {
    yield Uint8Array.of(1, 2)
    yield Uint8Array.of(3, 4, 5, 6)
  }
  const pieces: Uint8Array[] = []
  const small = { name: 'arr_0', dtype: 'uint8', shape: [2, 3], data: six } as const
  for await (const piece of npzBytes([small])) pieces.push(piece)
  const zip = Buffer.concat(pieces)
  const entry = zip.indexOf('PK\x01\x02', 0, 'latin1')
  const end64 = zip.indexOf('PK\x06\x06', 0, 'latin1')
  assert.ok(entry > 0 && end64 > entry)
  // APPNOTE 4.3.12 and 4.5.3: 32-bit sizes of all ones, then the field 0x0001 with the real ones.
  assert.is(zip.readUInt32LE(entry + 20), 0xffffffff)
  const extra = entry + 46 + zip.readUInt16LE(entry + 28)
  assert.is(zip.readUInt16LE(extra), 1)
  assert.is(zip.readBigUInt64LE(extra + 4), 128n + 6n)
  assert.is(zip.readBigUInt64LE(end64 + 48), BigInt(entry))
})

test('an array that is not as long as its shape says, or fails, is an error', async () => {
  async function* short() {
    yield Uint8Array.of(1, 2)
  }
  async function* failing() {
    yield Uint8Array.of(1, 2)
    throw new Error('the disk is gone')
  }
  const drain = async (data: () => AsyncIterable<Uint8Array>) => {
    for await (const _ of npzBytes([{ name: 'a', dtype: 'uint8', shape: [3], data }]));
  }
  for (const [data, message] of [
    [short, /unexpected number of bytes/],
    [failing, /the disk is gone/],
  ] as const) {
    let problem: Error | undefined
    await drain(data).catch((error) => {
      problem = error
    })
    assert.match(problem?.message ?? 'none', message)
  }
})

// ---- many processes ----

const demo = ['sample', '--model', 'demo', '--threads', '1', '--steps', '3', '--guidance', '2']
const kCount = 200

/** `dit sample` from dist/, which starts faster than the sources. */
function sampleDemo(out: string, ...args: string[]) {
  const flags = [...demo, '--count', String(kCount), '--out', out, '--json', ...args]
  const child = spawn(process.execPath, [main, ...flags], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let stdout = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
  })
  const ended = new Promise<{ made: number; missing: number } | NodeJS.Signals>(
    (resolve, reject) => {
      child.on('error', reject)
      child.on('close', (status, signal) => {
        if (status === 0) resolve(JSON.parse(stdout))
        else if (signal) resolve(signal)
        else reject(new Error(`status ${status}`))
      })
    },
  )
  return { child, ended }
}

let whole: Buffer | undefined

/** The file that one process makes. */
async function reference(): Promise<Buffer> {
  if (whole === undefined) {
    const out = newSet()
    await sampleDemo(out).ended
    whole = readFileSync(out)
  }
  return whole
}

for (const n of [2, 3]) {
  test(`${n} processes at a time make what one makes, bit for bit`, async () => {
    const out = newSet()
    const shards = Array.from({ length: n }, (_, i) => sampleDemo(out, '--shard', `${i + 1}/${n}`))
    const results = await Promise.all(shards.map(({ ended }) => ended))
    const made = results.map((result) => (typeof result === 'string' ? 0 : result.made))
    assert.is(
      made.reduce((a, b) => a + b),
      kCount,
    ) // prettier than a loop
    assert.ok(Math.max(...made) - Math.min(...made) <= 16, `shares of ${made}`)
    assert.ok(readFileSync(out).equals(await reference()))
    assert.not.ok(existsSync(`${out}.parts`))
  })
}

test('parts that two machines made, each in its folder, are joined in one', async () => {
  const [here, there] = [newSet(), newSet()]
  const first = await sampleDemo(here, '--shard', '1/2').ended
  assert.equal(first, { ...(first as object), made: 104, missing: 96 })
  assert.not.ok(existsSync(here))
  await sampleDemo(there, '--shard', '2/2').ended
  cpSync(`${there}.parts`, `${here}.parts`, { recursive: true })
  const joined = await sampleDemo(here).ended
  assert.equal(joined, { ...(joined as object), made: 0, missing: 0 })
  assert.ok(readFileSync(here).equals(await reference()))
})

test('killed (-9) and begun again, it makes only what is missing', async () => {
  const out = newSet()
  const { child, ended } = sampleDemo(out)
  while (!existsSync(`${out}.parts`) || partNames(out).length < 3) await sleep(5)
  child.kill('SIGKILL')
  assert.is(await ended, 'SIGKILL')
  const before = partNames(out)
  const times = before.map((name) => statSync(path.join(`${out}.parts`, name)).mtimeMs)
  assert.ok(before.length >= 3 && before.length < kCount / 16, `${before.length} parts`)
  // One more part, and a look at those of the first run before they are joined.
  await sampleDemo(out, '--shard', '13/13').ended
  assert.equal(
    before.map((name) => statSync(path.join(`${out}.parts`, name)).mtimeMs),
    times,
  )
  const there = partNames(out).length
  const rest = await sampleDemo(out).ended
  assert.ok(typeof rest !== 'string' && rest.missing === 0)
  const expected = kCount - (there - 1) * 16 - 8 // the last part, the thirteenth, has 8
  assert.is(typeof rest === 'string' ? -1 : rest.made, expected)
  assert.ok(readFileSync(out).equals(await reference()))
})

test('joined and killed before the parts were removed, it is joined again', async () => {
  const out = newSet()
  await make(out, { shard: [1, 2] })
  await make(out, { shard: [2, 2] })
  const bytes = readFileSync(out)
  // As it is between the two files: the first is there, the parts are, the sidecar is not.
  const other = newSet()
  await make(other, { shard: [1, 2] })
  writeFileSync(other, 'anything')
  assert.is((await make(other, { shard: [2, 2] })).missing, 0)
  assert.ok(readFileSync(other).equals(bytes))
})

test('killed (-9) while it joins, it leaves nothing in the end', async () => {
  // 50 MB in all: joining takes some time.
  const out = newSet()
  const source = `
    import { DiT, sampleSet } from './dist/index.mjs'
    const dit = await DiT.create({ depth: 1, hidden: 8, heads: 1, patchSize: 64, latentSize: 512, channels: 3, numClasses: 1 }, { seed: 1, precision: 'fp32' })
    const onProgress = ({ phase }) => phase === 'join' && process.kill(process.pid, process.argv[1])
    const { missing } = await sampleSet(dit, { out: ${JSON.stringify(out)}, count: 64, steps: 1, guidance: 1, onProgress })
    console.log(missing)
    await dit.close()`
  const run = (signal: string) => {
    const args = ['--input-type=module', '-e', source, signal]
    return spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
  }
  assert.is(run('SIGKILL').signal, 'SIGKILL')
  assert.equal(readdirSync(path.dirname(out)), ['samples.npz.parts'])
  assert.ok(readdirSync(`${out}.parts`).some((name) => /^samples\.npz\..*\.part$/.test(name)))
  const { status, stdout, stderr } = run('SIGCONT') // does nothing
  assert.equal([status, stdout], [0, '0\n'], stderr)
  assert.equal(readdirSync(path.dirname(out)).sort(), ['samples.json', 'samples.npz'])
})

test('what is complete is not made again', async () => {
  const out = newSet()
  await make(out)
  const { mtimeMs } = statSync(out)
  assert.equal((await make(out)).made, 0)
  assert.is(statSync(out).mtimeMs, mtimeMs)
  assert.not.ok(existsSync(`${out}.parts`))
})

// ---- what goes wrong ----

test('other options, another model, another count: what is different is named', async () => {
  const out = newSet()
  await make(out, { shard: [1, 2] })
  const wrong = (options: Partial<SampleSetOptions>, message: RegExp) =>
    rejects(() => make(out, options), 'ERR_DIT_OPTION', message)
  await wrong({ steps: 3 }, /another set of samples: steps \(was 2, is 3\), spacing/)
  await wrong({ count: 51 }, /count \(was 50, is 51\)/)
  await wrong({ seed: 1 }, /seed \(was '0', is '1'\)/)
  await wrong({ labels: [1] }, /labels \(was 'all', is \[1\]\)/)
  await using bf16 = await DiT.load(pipeline, { latentSize: 16, threads: 1, precision: 'fp32' })
  await rejects(
    () => sampleSet(bf16, { out, count: 50, ...quick }),
    'ERR_DIT_OPTION',
    /shape \(was \[16,16,3\], is \[32,32,3\]\), weights/,
  )
  await make(out)
  await wrong({ guidance: 3 }, /guidance \(was 2, is 3\)/)
})

test('a file that is no set of samples is not overwritten; neither is what stands in for its sidecar', async () => {
  const out = newSet()
  writeFileSync(out, 'mine')
  await rejects(() => make(out), 'ERR_DIT_FILE', /is not overwritten/)
  assert.is(readFileSync(out, 'utf8'), 'mine')
  rmSync(out)
  writeFileSync(out.replace('.npz', '.json'), '{"mine": true}')
  await rejects(() => make(out), 'ERR_DIT_FORMAT', /samples\.json/)
})

test('a damaged part and one of another set are named', async () => {
  const out = newSet()
  await make(out, { shard: [1, 2] })
  const [first = ''] = partNames(out)
  const file = path.join(`${out}.parts`, first)
  const bytes = readFileSync(file)
  truncateSync(file, bytes.length - 1)
  await rejects(() => make(out), 'ERR_DIT_FORMAT', /part-00000/)
  const other = newSet()
  await make(other, { shard: [1, 2], seed: 1 })
  cpSync(path.join(`${other}.parts`, first), file)
  await rejects(() => make(out), 'ERR_DIT_FORMAT', /part-00000.*another set of samples/)
  writeFileSync(file, bytes)
  assert.is((await make(out)).missing, 0)
})

test('a folder that cannot be written and a full disk', async () => {
  const folder = temporaryFolder()
  writeFileSync(path.join(folder, 'file'), '')
  const out = path.join(folder, 'file', 'samples.npz')
  await rejects(() => make(out), 'ERR_DIT_FILE', /a part of the path is a file/)

  // 60 kB hold each part, but not the file of all.
  const full = newSet()
  const source = `
    import { DiT, sampleSet } from './lib/index.ts'
    const dit = await DiT.load(${JSON.stringify(pipeline)}, { precision: 'fp32', threads: 1 })
    const given = { out: ${JSON.stringify(full)}, count: 100, steps: 1 }
    const error = await sampleSet(dit, given).catch((error) => error)
    console.log(error.code, error.message)
    await dit.close()`
  const { stdout, stderr } = await runModuleWithin(60, source)
  assert.match(stdout, /^ERR_DIT_FILE Cannot write .*samples\.npz: /, stderr)
  assert.equal(readdirSync(path.dirname(full)), ['samples.npz.parts'])
  const { made, missing } = await make(full, { count: 100, steps: 1, guidance: 4 })
  assert.equal([made, missing], [0, 0])
})

test('an abort ends it; what was finished stays', async () => {
  const out = newSet()
  const stop = new AbortController()
  const reason = new Error('enough')
  let problem: unknown
  await make(out, {
    signal: stop.signal,
    onProgress: ({ done }) => done === 40 && stop.abort(reason),
  }).catch((error) => {
    problem = error
  })
  assert.is(problem, reason)
  const { made } = await make(out)
  assert.ok(made < 50, `${made} made again`)
})

test('a model whose queue is full of others: it waits for its turn', async () => {
  const out = newSet()
  await make(out)
  const busy = newSet()
  await using model = await DiT.load(pipeline, { ...cpu, maxBatch: 1, maxQueue: 0 })
  const { made } = await sampleSet(model, { out: busy, count: 50, ...quick })
  assert.is(made, 50)
  assert.ok(model.stats().refused.busy > 0)
  assert.ok(readFileSync(busy).equals(readFileSync(out)))
})

test('wrong options', async () => {
  const out = newSet()
  const cases: [Partial<SampleSetOptions>, RegExp][] = [
    [{ out: 'samples.npy' }, /a name that ends in \.npz for out/],
    [{ count: 0 }, /count/],
    [{ shard: [3, 2] }, /\[i, n\] with 1 <= i <= n for shard/],
    [{ labels: [] }, /labels/],
    [{ labels: [5, 6] }, /labels\[1\]/],
    [{ labels: [new Float32Array(3)] as never }, /labels/],
    [{ eta: 1 }, /eta/],
  ]
  for (const [options, message] of cases) {
    await rejects(() => make(out, options), 'ERR_DIT_OPTION', message)
  }
  assert.equal(readdirSync(path.dirname(out)), [])
})

test('dit sample --count: flags that do not go together', async () => {
  const out = newSet()
  mkdirSync(`${out}.parts`)
  const model = ['sample', '--model', pipeline, '--out']
  const cases: [string[], RegExp][] = [
    [[...model, out, '--count', '5', '--shard', '0/2'], /Expected I\/N/],
    [[...model, out, '--count', '5', '--columns', '2'], /--columns/],
    [[...model, 'x.png', '--count', '5'], /ends in \.npz for --out/],
    [[...model, out, '--count', '5', '--labels', '1', '--random-labels'], /not both/],
    [[...model, 'x.png', '--labels', '1', '--shard', '1/2'], /--shard go(es)? with --count/],
    [[...model, 'x.png'], /Give --labels, or --count/],
  ]
  const ended = await Promise.all(cases.map(([args]) => dit(args)))
  for (const [i, { status, stderr }] of ended.entries()) {
    assert.is(status, 2, stderr)
    assert.match(stderr, cases[i]?.[1] as RegExp)
  }
  const json = await ditJson(...model, out, '--count', '3', '--random-labels', '--steps', '1')
  assert.is((json as { made: number }).made, 3)
})

test.run()
