// The server over real connections: events, clients that leave, that are slow, and that are many.
// timeout: 180s
import { once } from 'node:events'
import http from 'node:http'
import net from 'node:net'
import { mock } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import Fastify from 'fastify'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT } from '../lib/index.js'
import { type DitServerOptions, ditServer, serve } from '../lib/server/index.js'
import { eventsOf, type Json, tinyModel } from './helpers/server.js'
import { until } from './helpers/waiting.js'

interface Listening {
  url: string
  close: () => Promise<unknown>
}

async function listen(
  model: DitServerOptions['model'],
  options: Omit<DitServerOptions, 'model'> = {},
): Promise<Listening> {
  const app = Fastify({ forceCloseConnections: true })
  await app.register(ditServer, { model, ...options })
  return { url: await app.listen({ port: 0 }), close: () => app.close() }
}

function ask(url: string, body: object, signal?: AbortSignal): Promise<Response> {
  return fetch(`${url}/v1/images`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    ...(signal && { signal }),
  })
}

/** Waits until something holds; the runner's limit ends it. */
async function figure(url: string, name: RegExp): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  const line = text.split('\n').find((one) => name.test(one))
  return line === undefined ? 0 : Number(line.split(' ').at(-1))
}

/** One whose rounds take long enough to tell one from the next. */
function slowModel(maxBatch = 4): Promise<DiT> {
  const size = { depth: 4, hidden: 256, heads: 4, patchSize: 2, latentSize: 32, channels: 3 }
  const place = { device: 'cpu', precision: 'fp32', maxBatch } as const
  return DiT.create({ ...size, numClasses: 10 }, { seed: 1, ...place })
}

test('events: queued, progress, previews, done; again for who comes late', async () => {
  const dit = await tinyModel()
  const server = await listen(dit)
  const body = { labels: [1, 2], seed: 5, steps: 12, preview: 4, wait: false }
  const started = await ask(server.url, body)
  assert.is(started.status, 202)
  const { id, events } = (await started.json()) as Json
  assert.is(started.headers.get('location'), events)
  const answer = await fetch(server.url + events)
  assert.is(answer.headers.get('content-type'), 'text/event-stream; charset=utf-8')
  const seen: [string, Json][] = []
  for await (const event of eventsOf(answer)) seen.push(event)
  assert.equal(seen[0], ['queued', { id, images: 2 }])
  assert.is(seen.at(-1)?.[0], 'done')
  const progress = seen.filter(([name]) => name === 'progress').map(([, data]) => data)
  assert.ok(progress.length > 0 && progress.every(({ step, steps }) => step <= 24 && steps === 24))
  const steps = progress.map(({ step }) => step)
  assert.equal(
    steps,
    steps.toSorted((a: number, b: number) => a - b),
  )
  const done = seen.at(-1)?.[1]
  assert.is(done.id, id)
  const wanted = await dit.sample([1, 2], { seed: 5, steps: 12 })
  for (const [i, image] of done.images.entries()) {
    const made = await sharp(Buffer.from(image.data, 'base64')).raw().toBuffer()
    assert.equal(made, Buffer.from(wanted[i]?.data as Uint8Array))
  }
  const late: [string, Json][] = []
  for await (const event of eventsOf(await fetch(server.url + events))) late.push(event)
  assert.is(late[0]?.[0], 'queued')
  assert.equal(late.at(-1), ['done', done])
  assert.is((await fetch(`${server.url}/v1/images/nothing/events`)).status, 404)
  await server.close()
  await dit.close()
})

test('previews are pictures that come while the image is in the making', async () => {
  const dit = await slowModel()
  const server = await listen(dit)
  const body = { labels: 1, steps: 12, guidance: 1, preview: 3, wait: false }
  const { events } = (await (await ask(server.url, body)).json()) as Json
  const steps: number[] = []
  for await (const [name, data] of eventsOf(await fetch(server.url + events))) {
    if (name !== 'preview') continue
    steps.push(data.step)
    const [, base64 = ''] = /^data:image\/(?:png|webp);base64,(.+)$/.exec(data.image) ?? []
    const { width, height } = await sharp(Buffer.from(base64, 'base64')).metadata()
    assert.equal([width, height, data.index, data.steps], [32, 32, 0, 12])
  }
  assert.ok(steps.length >= 2, String(steps))
  assert.ok(
    steps.every((step) => step % 3 === 0 && step < 12),
    String(steps),
  )
  await server.close()
  await dit.close()
})

test('who leaves frees the lane within a step', async () => {
  const dit = await slowModel()
  const server = await listen(dit, { limits: { steps: 1000 } })
  const ways: [string, () => Promise<() => Promise<unknown>>][] = [
    [
      'a request is given up',
      async () => {
        const gone = new AbortController()
        const asked = ask(server.url, { labels: [1, 2], steps: 1000 }, gone.signal)
        const failed = asked.catch((error) => error.name)
        return async () => {
          gone.abort()
          assert.is(await failed, 'AbortError')
        }
      },
    ],
    [
      'the only listener leaves',
      async () => {
        const gone = new AbortController()
        const started = await ask(server.url, { labels: [1, 2], steps: 1000, wait: false })
        const { events } = (await started.json()) as Json
        await fetch(server.url + events, { signal: gone.signal })
        return async () => gone.abort()
      },
    ],
    [
      'it is deleted',
      async () => {
        const started = await ask(server.url, { labels: [1, 2], steps: 1000, wait: false })
        const { id, events } = (await started.json()) as Json
        const seen = fetch(server.url + events).then(async (answer) => {
          const names: string[] = []
          for await (const [name, data] of eventsOf(answer)) {
            names.push(name)
            if (name === 'error') assert.is(data.code, 'cancelled')
          }
          return names.at(-1)
        })
        return async () => {
          const deleted = await fetch(`${server.url}/v1/images/${id}`, { method: 'DELETE' })
          assert.is(deleted.status, 204)
          assert.is(await seen, 'error')
        }
      },
    ],
  ]
  for (const [what, begin] of ways) {
    const leave = await begin()
    await until('two lanes in use', () => dit.stats().lanes === 2)
    const { rounds } = dit.stats()
    await until('a round', () => dit.stats().rounds > rounds)
    const before = dit.stats().rounds
    await leave()
    await until('free lanes', () => dit.stats().lanes === 0)
    // The one that was under way, and one more while the news travelled.
    assert.ok(dit.stats().rounds - before <= 2, `${what}: ${dit.stats().rounds - before} rounds`)
  }
  await until('nobody waits', () => dit.stats().waiting === 0)
  assert.is(await figure(server.url, /^dit_server_images_in_flight/), 0)
  await server.close()
  await dit.close()
})

test('one of two listeners leaves: it goes on', async () => {
  const dit = await slowModel()
  const server = await listen(dit)
  const started = await ask(server.url, { labels: 1, steps: 20, guidance: 1, wait: false })
  const { events } = (await started.json()) as Json
  const gone = new AbortController()
  const [first] = await Promise.all([
    fetch(server.url + events),
    fetch(server.url + events, { signal: gone.signal }),
  ])
  gone.abort()
  let last = ''
  for await (const [name] of eventsOf(first as Response)) last = name
  assert.is(last, 'done')
  await server.close()
  await dit.close()
})

test('listeners of one request are limited', async () => {
  const dit = await slowModel()
  const server = await listen(dit, { limits: { steps: 1000 } })
  const body = { labels: 1, steps: 1000, sampler: 'ddpm', wait: false }
  const { id, events } = (await (await ask(server.url, body)).json()) as Json
  const leave = new AbortController()
  const listeners = Array.from({ length: 16 }, () => {
    return fetch(server.url + events, { signal: leave.signal })
  })
  assert.ok((await Promise.all(listeners)).every(({ status }) => status === 200))
  const oneMore = await fetch(server.url + events)
  assert.equal([oneMore.status, oneMore.headers.get('retry-after')], [429, '5'])
  leave.abort()
  await until('it is cancelled', () => dit.stats().cancelled === 1)
  const end = await (await fetch(server.url + events)).text()
  assert.match(end, 'nobody listened', id)
  await server.close()
  await dit.close()
})

test('a listener that does not read holds nothing up', async () => {
  const dit = await tinyModel()
  const server = await listen(dit, { limits: { steps: 1000 } })
  const started = await ask(server.url, {
    labels: [1, 2, 3, 4],
    steps: 1000,
    preview: 1,
    wait: false,
  })
  const { events } = (await started.json()) as Json
  const socket = net.connect(Number(new URL(server.url).port), '127.0.0.1')
  await once(socket, 'connect')
  socket.pause()
  socket.write(`GET ${events} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
  await sleep(50)
  const other = await ask(server.url, { labels: 1, steps: 3 })
  assert.is(other.status, 200)
  await until('nothing to do', () => dit.stats().lanes === 0 && dit.stats().waiting === 0)
  socket.resume()
  let text = ''
  for await (const chunk of socket) {
    text += chunk
    if (text.includes('event: done') && text.endsWith('0\r\n\r\n')) break
  }
  assert.match(text, 'event: done')
  await server.close()
  await dit.close()
})

test('a listener that reads the end slowly gets all of it', async () => {
  const size = { depth: 1, hidden: 32, heads: 2, patchSize: 32, latentSize: 256, channels: 3 }
  const dit = await DiT.create({ ...size, numClasses: 2 }, { device: 'cpu', seed: 1 })
  const server = await listen(dit, { limits: { images: 140 } })
  const labels = new Array<number>(140).fill(1)
  const started = await ask(server.url, { labels, steps: 1, guidance: 1, wait: false })
  const { events } = (await started.json()) as Json
  const whole = await (await fetch(server.url + events)).text()
  assert.ok(whole.length > 5.5e6, `${whole.length}`) // what sockets buffer is less
  mock.timers.enable({ apis: ['setInterval'] })
  const socket = net.connect(Number(new URL(server.url).port), '127.0.0.1')
  await once(socket, 'connect')
  socket.pause()
  socket.write(`GET ${events} HTTP/1.0\r\nHost: localhost\r\n\r\n`)
  await sleep(300)
  mock.timers.tick(60_000)
  mock.timers.reset()
  let text = ''
  for await (const chunk of socket) text += chunk
  const doneOf = (all: string) => all.slice(all.indexOf('event: done'))
  assert.ok(doneOf(text) === doneOf(whole), `${text.length} of ${whole.length}`)
  await server.close()
  await dit.close()
})

test('1000 requests, half of them given up: the rest is right, and nothing is left behind', async () => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const dit = await tinyModel()
  const server = await listen(dit, { cacheBytes: 0, limits: { inFlight: 10_000 } })
  const steps = 8
  const wanted = new Map<string, Buffer>()
  for (let label = 0; label < 6; label++) {
    for (let seed = 0; seed < 5; seed++) {
      const [image] = await dit.sample(label, { seed, steps })
      wanted.set(`${label} ${seed}`, Buffer.from(image?.data as Uint8Array))
    }
  }
  const agent = new http.Agent({ keepAlive: true, maxSockets: 32 })
  const one = (i: number): Promise<'right' | 'left'> => {
    const label = i % 6
    const seed = i % 5
    const leaves = i % 2 === 1
    return new Promise((resolve, reject) => {
      const request = http.request(
        `${server.url}/v1/images`,
        {
          method: 'POST',
          agent,
          headers: { 'content-type': 'application/json', accept: 'image/png' },
        },
        async (response) => {
          const chunks: Buffer[] = []
          try {
            for await (const chunk of response) chunks.push(chunk)
            assert.is(response.statusCode, 200)
            const pixels = await sharp(Buffer.concat(chunks)).raw().toBuffer()
            assert.is(Buffer.compare(pixels, wanted.get(`${label} ${seed}`) as Buffer), 0)
            resolve('right')
          } catch (error) {
            if (leaves) resolve('left')
            else reject(error)
          }
        },
      )
      request.on('error', (error) => (leaves ? resolve('left') : reject(error)))
      if (leaves) request.on('socket', () => setTimeout(() => request.destroy(), (i * 7919) % 60))
      request.end(JSON.stringify({ labels: label, seed, steps }))
    })
  }
  const run = async (begin: number, end: number) => {
    const results = { right: 0, left: 0 }
    const waiting = Array.from({ length: end - begin }, (_, i) => begin + i)
    const next = async () => {
      for (let i = waiting.shift(); i !== undefined; i = waiting.shift()) results[await one(i)]++
    }
    await Promise.all(Array.from({ length: 32 }, next))
    await until('nothing to do', () => dit.stats().lanes === 0 && dit.stats().waiting === 0)
    return results
  }
  const used = async () => {
    await sleep(50)
    collect()
    const { heapUsed, external } = process.memoryUsage()
    return heapUsed + external
  }
  await run(0, 200)
  const memory = dit.memory()
  const before = await used()
  const { right, left } = await run(200, 1200)
  assert.ok(right >= 500 && left > 100, `${right} right, ${left} left`)
  const grown = (await used()) - before
  assert.ok(grown < 4 << 20, `${grown} bytes`)
  assert.equal(dit.memory(), memory)
  assert.is(await figure(server.url, /^dit_server_images_in_flight/), 0)
  const answered = await figure(server.url, /_count\{method="POST".*status="200"\}/)
  const abandoned = await figure(server.url, /_count\{method="POST".*status="499"\}/)
  assert.ok(answered >= right, `${answered} answered`)
  assert.ok(abandoned > 100 && answered + abandoned <= 1200, `${abandoned} abandoned`)
  const [again] = await dit.sample(3, { seed: 3, steps })
  assert.equal(Buffer.from(again?.data as Uint8Array), wanted.get('3 3'))
  agent.destroy()
  await server.close()
  await dit.close()
})

test('slow and broken clients are ended, others are served meanwhile', async () => {
  const server = await serve({ model: 'demo', port: 0 })
  const port = Number(new URL(server.url).port)
  const head = 'POST /v1/images HTTP/1.1\r\nHost: localhost\r\n'
  const json = 'Content-Type: application/json\r\n'
  /** Sends, then a byte every so often, until the server ends it: what it said. */
  const trickle = async (begin: string, drop: string): Promise<string> => {
    const socket = net.connect(port, '127.0.0.1')
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk
    })
    socket.on('error', () => socket.destroy()) // a reset is an end, too
    socket.write(begin)
    const timer = setInterval(() => socket.write(drop), 500)
    await once(socket, 'close')
    clearInterval(timer)
    return text
  }
  const slow = Promise.all([
    trickle('GET /healthz HTTP/1.1\r\nHost: localhost\r\n', 'X-A: b\r\n'),
    trickle(`${head}${json}Content-Length: 1000\r\n\r\n{"labels"`, ' '),
    trickle(`${head}${json}Transfer-Encoding: chunked\r\n\r\n`, '1\r\n \r\n'),
    ...Array.from({ length: 40 }, () => trickle('G', 'E')),
  ])
  const refused: [string, RegExp][] = [
    ['nonsense\r\n\r\n', /^HTTP\/1.1 400/],
    [`${head}${json}Content-Length: 999999999\r\n\r\n`, /^HTTP\/1.1 413/],
    [`${head}${json}Content-Length: -1\r\n\r\n`, /^HTTP\/1.1 400/],
    [`${head}${json}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}`, /^HTTP\/1.1 400/],
    [`GET / HTTP/1.1\r\nHost: a\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, /^HTTP\/1.1 431/],
    ['GET /readyz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n', /^HTTP\/1.1 421/],
    ['GET /readyz HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n', /^HTTP\/1.1 200/],
    [
      'GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
      /^HTTP\/1.1 404/,
    ],
    [
      'GET /%2e%2e/index.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
      /^HTTP\/1.1 404/,
    ],
  ]
  for (const [bytes, answer] of refused) {
    const socket = net.connect(port, '127.0.0.1')
    socket.on('error', () => socket.destroy())
    socket.write(bytes)
    let text = ''
    for await (const chunk of socket) text += chunk
    assert.match(text, answer, bytes.slice(0, 60))
  }
  for (let i = 0; i < 5; i++) {
    const answer = await ask(server.url, { labels: i, steps: 2, format: 'png' })
    assert.is(answer.status, 200)
    await answer.arrayBuffer()
  }
  const answers = await slow
  for (const text of answers) assert.match(text, /^(HTTP\/1.1 (400|408)|$)/)
  assert.match(answers[1] as string, '408')
  assert.is((await fetch(`${server.url}/readyz`)).status, 200)
  await server.close()
})

test.run()
