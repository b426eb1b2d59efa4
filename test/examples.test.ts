// The programs of examples/ run as they stand, and do what they say. (examples/farm has a test of its own.)
// timeout: 300s
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type RawImage } from '../lib/index.js'
import { temporaryFolder } from './helpers/files.js'
import { until } from './helpers/waiting.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const examples = path.join(root, 'examples')

/** Threads that wait do not spin: on a machine that has other work they would use up their turns so. */
process.env.OMP_WAIT_POLICY = 'passive' // read when the native part is loaded
const { env } = process

/** Runs an example in an empty folder, in which its files are then. */
function runExample(name: string, ...args: string[]): { folder: string; stdout: string } {
  const folder = temporaryFolder()
  const command = [path.join(examples, name), ...args]
  const options = { cwd: folder, encoding: 'utf8', timeout: 100_000, env } as const
  const { status, stdout, stderr } = spawnSync(process.execPath, command, options)
  assert.is(status, 0, `${name}: ${stderr}`)
  return { folder, stdout }
}

async function greys(file: string | Buffer): Promise<Uint8Array> {
  return new Uint8Array(await sharp(file).greyscale().raw().toBuffer())
}

async function demoImage(label: string | number, options: object): Promise<RawImage> {
  await using dit = await DiT.load('demo')
  const [image] = await dit.sample(label, options)
  assert.ok(image)
  return image
}

/** Pearson's correlation of the pixels of two images. */
function correlation(a: Uint8Array, b: Uint8Array): number {
  assert.is(a.length, b.length)
  const centred = (x: Uint8Array) => {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length
    return Array.from(x, (value) => value - mean)
  }
  const [p, q] = [centred(a), centred(b)]
  const dot = (x: number[], y: number[]) => x.reduce((sum, v, i) => sum + v * (y[i] as number), 0)
  return dot(p, q) / Math.sqrt(dot(p, p) * dot(q, q))
}

// ---- programs ----

test('sample.mjs', async () => {
  const { folder, stdout } = runExample('sample.mjs')
  assert.equal(readdirSync(folder).sort(), ['Bag.png', 'Sneaker.png'])
  assert.match(stdout, /^Bag\.png: 32×32, seed 2$/m)
  const { data } = await demoImage('Bag', { steps: 25, guidance: 2, seed: 2 })
  assert.equal(await greys(path.join(folder, 'Bag.png')), data)
})

test('stream.mjs', async () => {
  const { folder, stdout } = runExample('stream.mjs')
  assert.match(stdout, /^step 20 of 20$/m)
  assert.match(stdout, /^given up after 100 ms$/m)
  assert.ok(readdirSync(folder).some((name) => /^preview-\d+\.png$/.test(name)))
  const { data } = await demoImage('Dress', { steps: 20, guidance: 2, seed: 3 })
  assert.equal(await greys(path.join(folder, 'dress.png')), data)
})

test('train.mjs', async () => {
  const { folder, stdout } = runExample('train.mjs', '100')
  const losses = [...stdout.matchAll(/^step \d+: loss ([\d.]+)$/gm)].map(([, loss]) => Number(loss))
  assert.ok(losses.length >= 1 && losses.every((loss) => loss < 0.9), stdout)
  assert.ok(existsSync(path.join(folder, 'shapes.png')))
  await using dit = await DiT.load(path.join(folder, 'shapes.safetensors'))
  assert.equal(dit.classNames, { 0: 'disc', 1: 'square' })
})

test("solver.mjs: Heun's method ends where DDIM ends, from the same noise", async () => {
  const { folder, stdout } = runExample('solver.mjs')
  assert.match(stdout, /23 evaluations/)
  const [heun, ddim] = await Promise.all(
    ['heun.png', 'ddim.png'].map((name) => greys(path.join(folder, name))),
  )
  // Measured: 0.995. From other noise the same class has 0.8 to 0.95.
  const similarity = correlation(heun as Uint8Array, ddim as Uint8Array)
  assert.ok(similarity > 0.98, `${similarity}`)
})

test('workers.mjs', () => {
  const { stdout } = runExample('workers.mjs')
  assert.is(stdout.match(/: PNG of \d+ bytes$/gm)?.length, 6)
})

// ---- servers ----

const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

async function startServer(name: string): Promise<{ url: string; stop: () => Promise<unknown> }> {
  const child = spawn(process.execPath, [path.join(examples, name)], {
    env: { ...env, PORT: '0' },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  children.add(child)
  const ended = new Promise((resolve) => child.on('close', resolve))
  const url = await new Promise<string>((resolve, reject) => {
    let text = ''
    child.stdout.setEncoding('utf8').on('data', (more: string) => {
      text += more
      const found = /http:\/\/127\.0\.0\.1:\d+/.exec(text)
      if (found) resolve(found[0])
    })
    child.on('close', () => reject(new Error(`${name} ended: ${text}`)))
  })
  return {
    url,
    async stop() {
      child.kill('SIGTERM')
      const status = await ended
      children.delete(child)
      return status
    },
  }
}

interface Stats {
  lanes: number
  waiting: number
  cancelled: number
}

for (const name of ['express.mjs', 'fastify.mjs']) {
  test(`${name}: images, errors, a client that leaves, too many, the end`, async () => {
    const { url, stop } = await startServer(name)
    const stats = async () => (await (await fetch(`${url}/stats`)).json()) as Stats

    const response = await fetch(`${url}/images/Sneaker?seed=5&steps=8`)
    assert.is(response.status, 200)
    assert.match(response.headers.get('content-type') ?? '', /^image\/png/)
    assert.is(response.headers.get('x-seed'), '5')
    const png = Buffer.from(await response.arrayBuffer())
    const expected = await demoImage('Sneaker', { steps: 8, guidance: 2, seed: 5 })
    assert.ok(png.equals(await expected.toPNG()))
    assert.is((await fetch(`${url}/images/7?seed=5&steps=8`)).status, 200)

    const unknown = await fetch(`${url}/images/Sneeker`)
    assert.is(unknown.status, 400)
    const { error } = (await unknown.json()) as { error: { code: string; message: string } }
    assert.is(error.code, 'ERR_DIT_OPTION')
    assert.match(error.message, /Did you mean 'sneaker'/)
    assert.is((await fetch(`${url}/images/7?seed=x`)).status, 400)

    const leave = new AbortController()
    const left = fetch(`${url}/images/1?steps=1000`, { signal: leave.signal }).catch(() => 'left')
    await until('a lane in use', async () => (await stats()).lanes === 1)
    const before = (await stats()).cancelled
    leave.abort()
    assert.is(await left, 'left')
    await until('its lane is free', async () => (await stats()).lanes === 0)
    assert.is((await stats()).cancelled, before + 1)

    const crowd = new AbortController()
    const { signal } = crowd
    const all = Array.from({ length: 60 }, async () => {
      const one = await fetch(`${url}/images/1?steps=1000`, { signal }).catch(() => undefined)
      return one && { status: one.status, retryAfter: Number(one.headers.get('retry-after')) }
    })
    const refused = await Promise.race(all)
    assert.is(refused?.status, 503)
    assert.ok((refused?.retryAfter ?? 0) >= 1)
    crowd.abort()
    await Promise.all(all)
    await until(
      'all lanes are free',
      async () => (await stats()).lanes + (await stats()).waiting === 0,
    )
    assert.is((await fetch(`${url}/images/7?steps=2`)).status, 200)
    assert.is(await stop(), 0)
  })
}

test('server.mjs: the plugin below a prefix, the application above', async () => {
  const { url, stop } = await startServer('server.mjs')
  const page = await fetch(url, { redirect: 'manual' })
  assert.equal([page.status, page.headers.get('location')], [302, '/dit/'])
  const post = (body: object) =>
    fetch(`${url}/dit/v1/images`, {
      method: 'POST',
      headers: { Accept: 'image/png', 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    })
  const response = await post({ labels: 'Sneaker', seed: 5, steps: 8, guidance: 2 })
  assert.is(response.status, 200)
  const expected = await demoImage('Sneaker', { steps: 8, guidance: 2, seed: 5 })
  assert.equal(await greys(Buffer.from(await response.arrayBuffer())), expected.data)
  assert.is((await post({ labels: 1, steps: 101 })).status, 400)
  assert.is(await stop(), 0)
})

// ---- Next.js: a route handler is a function of a web Request ----

const route = 'http://localhost:3000/api/images'
/** Imported by name: their imports, without extensions, are a bundler's, so they have a type check of their own. */
type Handler = (request: Request) => Promise<Response>
const handlers = path.join(examples, 'next/app/api/images/route.ts')
const { GET, POST }: { GET: Handler; POST: Handler } = await import(handlers)
const { model }: { model: () => Promise<DiT> } = await import(
  path.join(examples, 'next/lib/model.ts')
)

test('next: GET gives an image, or what is wrong', async () => {
  const response = await GET(new Request(`${route}?label=Bag&seed=3&steps=8`))
  assert.is(response.status, 200)
  assert.is(response.headers.get('content-type'), 'image/png')
  const expected = await demoImage('Bag', { steps: 8, guidance: 2, seed: 3 })
  assert.ok(Buffer.from(await response.arrayBuffer()).equals(await expected.toPNG()))
  for (const query of ['', '?label=hat', '?label=1&seed=-1', '?label=1&steps=x']) {
    const wrong = await GET(new Request(`${route}${query}`))
    assert.is(wrong.status, 400, query)
    assert.is(((await wrong.json()) as { code: string }).code, 'ERR_DIT_OPTION')
  }
})

test('next: POST gives events, the last with the image', async () => {
  const body = JSON.stringify({ label: 'Bag', seed: 3, steps: 12 })
  const response = await POST(new Request(route, { method: 'POST', body }))
  assert.is(response.headers.get('content-type'), 'text/event-stream')
  const events = (await response.text()).split('\n\n').slice(0, -1)
  const names = events.map((event) => /^event: (\w+)\ndata: \{/.exec(event)?.[1])
  assert.ok(names.includes('progress') && names.includes('preview'), names.join())
  const last = JSON.parse(events.at(-1)?.replace(/^event: image\ndata: /, '') ?? '')
  const expected = await demoImage('Bag', { steps: 12, guidance: 2, seed: 3 })
  assert.ok(Buffer.from(last.png, 'base64').equals(await expected.toPNG()))

  for (const wrong of ['{', '{"label": "hat"}', '{"label": [1, 2]}', 'null']) {
    const { status } = await POST(new Request(route, { method: 'POST', body: wrong }))
    assert.is(status, 400, wrong)
  }
})

test('next: who leaves frees the lane; many are told to come back', async () => {
  const dit = await model()
  const isIdle = async () => dit.stats().lanes + dit.stats().waiting === 0
  const leave = new AbortController()
  const slow = () => new Request(`${route}?label=1&steps=250`, { signal: leave.signal })
  const answers = Array.from({ length: 60 }, () => GET(slow()))
  const first = await Promise.race(answers)
  assert.is(first.status, 503)
  assert.ok(Number(first.headers.get('retry-after')) >= 1)
  leave.abort()
  const statuses = new Set((await Promise.all(answers)).map(({ status }) => status))
  assert.equal([...statuses].sort(), [499, 503])
  await until('idle after an abort', isIdle)

  const body = JSON.stringify({ label: 1, steps: 250 })
  const { body: stream } = await POST(new Request(route, { method: 'POST', body }))
  const reader = (stream as ReadableStream<Uint8Array>).getReader()
  await reader.read()
  assert.not.ok(await isIdle())
  await reader.cancel()
  await until('idle after the stream was cancelled', isIdle)
})

test('next: the types fit, strictly and as Next.js sets TypeScript up', () => {
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc')
  const flags = ['--ignoreConfig', '--noEmit', '--skipLibCheck', '--target', 'es2023']
  const modules = ['--module', 'preserve', '--moduleResolution', 'bundler', '--types', 'node']
  for (const strict of ['true', 'false']) {
    const args = [tsc, ...flags, '--strict', strict, ...modules, handlers]
    const { status, stdout } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
    assert.is(status, 0, stdout)
  }
})

test.after(async () => (await model()).close())

test.run()
