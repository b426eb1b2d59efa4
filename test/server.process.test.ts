// `dit serve` in a process of its own: started, stopped, killed, and started again.
// timeout: 240s
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { serve } from '../lib/server/index.js'
import { nameOf } from '../lib/server/serve.js'
import { dit } from './helpers/cli.js'
import { temporaryFolder } from './helpers/files.js'
import { startHub } from './helpers/hub.js'
import type { Json } from './helpers/server.js'
import { freePort } from './helpers/waiting.js'

/** What a promise is rejected with. */
function failure(promise: Promise<unknown>): Promise<Error & { code?: string }> {
  return promise.then(
    () => assert.unreachable('it succeeded') as never,
    (error) => error,
  )
}

const root = path.dirname(import.meta.dirname)

interface Running {
  url: string
  child: ChildProcess
  stderr: () => string
  /** [status, signal] */
  ended: Promise<[number | null, NodeJS.Signals | null]>
}

const children: ChildProcess[] = []
test.after(() => {
  for (const child of children) child.kill('SIGKILL')
})

/** Runs the compiled `dit serve` and waits for its address. */
async function start(args: string[], env: Record<string, string> = {}): Promise<Running> {
  const command = ['dist/cli/main.js', 'serve', '--model', 'demo', '--precision', 'fp32', ...args]
  const child = spawn(process.execPath, command, {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  children.push(child)
  const ended = once(child, 'exit') as Running['ended']
  let stderr = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  let stdout = ''
  const url = await new Promise<string>((resolve, reject) => {
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
      const [, address] = /^listening on (http:\S+)$/m.exec(stdout) ?? []
      if (address !== undefined) resolve(address)
    })
    ended.then(([status]) => reject(new Error(`ended with ${status}: ${stderr}`)), reject)
  })
  return { url, child, stderr: () => stderr, ended }
}

function ask(url: string, body: object, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${url}/v1/images`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  })
}

async function inFlight(url: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  return Number(/^dit_server_images_in_flight (\d+)$/m.exec(text)?.[1])
}

test('SIGTERM: what is under way is answered, nothing new is taken, status 0', async () => {
  const { url, child, ended, stderr } = await start(['--port', '0', '--grace', '300'])
  assert.is((await fetch(`${url}/readyz`)).status, 200)
  const waiting = [1, 2, 3].map((label) => ask(url, { labels: label, steps: 30, seed: 1 }))
  const started = await ask(url, { labels: 4, steps: 30, wait: false })
  const { events } = (await started.json()) as Json
  const watched = fetch(url + events).then((answer) => answer.text())
  while ((await inFlight(url)) !== 4) await sleep(5)
  child.kill('SIGTERM')
  while ((await fetch(`${url}/readyz`)).status !== 503) await sleep(5)
  const refused = await ask(url, { labels: 1, steps: 1 })
  assert.is(refused.status, 503)
  assert.ok(Number(refused.headers.get('retry-after')) >= 1)
  assert.is(((await refused.json()) as Json).error.code, 'ERR_DIT_DRAINING')
  assert.is((await fetch(`${url}/healthz`)).status, 200)
  for (const answer of await Promise.all(waiting)) {
    assert.is(answer.status, 200)
    assert.is(((await answer.json()) as Json).images.length, 1)
  }
  assert.match(await watched, 'event: done')
  assert.equal(await ended, [0, null])
  assert.match(stderr(), `Open ${url}/`)
})

test('what does not end within the grace period is cancelled', async () => {
  const { url, child, ended } = await start(['--port', '0', '--grace', '0', '--max-steps', '1000'])
  const waiting = ask(url, { labels: new Array(16).fill(1), steps: 300, sampler: 'ddpm' })
  while ((await inFlight(url)) !== 16) await sleep(5)
  child.kill('SIGINT')
  const answer = await waiting
  assert.is(answer.status, 503)
  assert.is(((await answer.json()) as Json).error.code, 'ERR_DIT_DRAINING')
  assert.equal(await ended, [0, null])
})

test('killed with -9 under load and started again: ready, with the same images', async () => {
  const port = await freePort()
  const args = ['--port', String(port), '--token', 'secret', '--log']
  const headers = { authorization: 'Bearer secret' }
  const first = await start(args)
  const body = { labels: [1, 2], seed: 3, steps: 4 }
  const before = (await (await ask(first.url, body, headers)).json()) as Json
  const load = Array.from({ length: 20 }, (_, i) =>
    ask(first.url, { labels: [1, 2, 3], seed: i, steps: 10 }, headers).then(
      (answer) => answer.text(),
      (error: Error) => error.name,
    ),
  )
  await Promise.race(load)
  first.child.kill('SIGKILL')
  assert.equal(await first.ended, [null, 'SIGKILL'])
  await Promise.all(load)

  const second = await start(args)
  assert.is(second.url, first.url)
  assert.is((await fetch(`${second.url}/readyz`)).status, 200)
  assert.is((await ask(second.url, body)).status, 401)
  const after = (await (await ask(second.url, body, headers)).json()) as Json
  assert.is(after.timings.cached, 0)
  assert.equal(after.images, before.images)
  second.child.kill('SIGTERM')
  assert.equal(await second.ended, [0, null])
})

test('a token from the environment; several models by name', async () => {
  const more = ['--model', 'again=demo', '--port', '0', '--quiet', '--no-playground']
  const refused = await dit(['serve', '--model', 'demo', ...more])
  assert.is(refused.status, 2)
  const child = spawn(
    process.execPath,
    ['dist/cli/main.js', 'serve', '--model', 'first=demo', ...more, '--json'],
    {
      cwd: root,
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, DIT_TOKEN: 'secret' },
    },
  )
  children.push(child)
  const [line] = (await once(child.stdout, 'data')) as [Buffer]
  const { url } = JSON.parse(line.toString())
  assert.is((await fetch(`${url}/v1/models`)).status, 401)
  const headers = { authorization: 'Bearer secret' }
  const { data } = (await (await fetch(`${url}/v1/models`, { headers })).json()) as Json
  assert.equal(
    data.map(({ id }: { id: string }) => id),
    ['first', 'again'],
  )
  const named = await ask(url, { labels: 1, steps: 1, model: 'again', format: 'png' }, headers)
  assert.is(named.status, 200)
  assert.is((await fetch(`${url}/`)).status, 404)
  child.kill('SIGTERM')
  assert.equal(await once(child, 'exit'), [0, null])
})

test('where it does not start, it says why', async () => {
  const everywhere = await dit(['serve', '--model', 'demo', '--host', '0.0.0.0'])
  assert.is(everywhere.status, 2)
  assert.match(everywhere.stderr, /give a token/)
  const busy = net.createServer().listen(0, '127.0.0.1')
  await once(busy, 'listening')
  const { port } = busy.address() as net.AddressInfo
  const taken = await dit(['serve', '--model', 'demo', '--port', String(port)])
  assert.is(taken.status, 2)
  assert.match(taken.stderr, `port ${port} of 127.0.0.1 is taken`)
  busy.close()
  const missing = await dit(['serve', '--model', './no-such-folder', '--port', '0'])
  assert.is(missing.status, 1)
  assert.match(missing.stderr, 'ERR_DIT_FILE')
})

test('without the packages of the server, it says which line to run', async () => {
  const without = path.join(temporaryFolder(), 'without.cjs')
  writeFileSync(
    without,
    `const Module = require('node:module')
    const resolve = Module._resolveFilename
    Module._resolveFilename = function (name, ...rest) {
      if (name !== 'fastify') return resolve.call(this, name, ...rest)
      throw Object.assign(new Error('Cannot find module'), { code: 'MODULE_NOT_FOUND' })
    }`,
  )
  const run = (...args: string[]) => {
    const child = spawn(process.execPath, ['--require', without, 'dist/cli/main.js', ...args], {
      cwd: root,
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let stderr = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    return once(child, 'close').then(([status]) => ({ status, stderr }))
  }
  const { status, stderr } = await run('serve', '--model', 'demo')
  assert.is(status, 1)
  assert.match(stderr, 'npm install fastify @fastify/swagger prom-client lru-cache')
  assert.equal(await run('info', 'demo'), { status: 0, stderr: '' })
})

test('alive and not ready while a model is loaded; stopped meanwhile', async () => {
  const hub = await startHub()
  const endpoint = process.env.HF_ENDPOINT
  process.env.HF_ENDPOINT = hub.url
  const held: (() => void)[] = []
  hub.intercept = (_, response) => {
    held.push(() => response.writeHead(404).end())
    return true
  }
  const load = async (signal?: AbortSignal) => {
    const port = await freePort()
    const options = { model: 'someone/model', port, ...(signal && { signal }) }
    const failed = failure(serve(options))
    while (held.length === 0) await sleep(5)
    const url = `http://127.0.0.1:${port}`
    assert.is((await fetch(`${url}/healthz`)).status, 200)
    const ready = await fetch(`${url}/readyz`)
    assert.is(ready.status, 503)
    assert.is(((await ready.json()) as Json).reason, 'a model is being loaded')
    const answer = await ask(url, { labels: 1 })
    assert.is(answer.status, 503)
    assert.ok(answer.headers.has('retry-after'))
    assert.equal(((await (await fetch(`${url}/v1/models`)).json()) as Json).data, [])
    return { failed, url }
  }
  const missing = await load()
  for (const release of held.splice(0)) release()
  hub.intercept = undefined
  assert.is((await missing.failed).code, 'ERR_DIT_FILE')
  await failure(fetch(missing.url))

  hub.intercept = (_, response) => {
    held.push(() => response.writeHead(404).end())
    return true
  }
  const stop = new AbortController()
  const stopped = await load(stop.signal)
  const reason = new Error('enough')
  stop.abort(reason)
  assert.is(await stopped.failed, reason)
  for (const release of held.splice(0)) release()
  await hub.close()
  if (endpoint === undefined) delete process.env.HF_ENDPOINT
  else process.env.HF_ENDPOINT = endpoint
})

test('stopped while its routes are made', async () => {
  const stop = new AbortController()
  const starting = serve({ model: 'demo', port: 0, signal: stop.signal })
  const reason = new Error('enough')
  stop.abort(reason)
  assert.is(await failure(starting), reason)
})

test('a page that names another host is refused, whatever it says to have come through', async () => {
  const server = await serve({ model: 'demo', port: 0, trustProxy: true })
  const statusOf = async (headers: Record<string, string>) => {
    const request = http.get(`${server.url}/readyz`, { headers })
    const [answer] = (await once(request, 'response')) as [http.IncomingMessage]
    answer.resume()
    return answer.statusCode
  }
  assert.is(await statusOf({}), 200)
  assert.is(await statusOf({ host: '[::1]:3000', 'x-forwarded-host': 'localhost' }), 200)
  assert.is(await statusOf({ host: 'evil.example', 'x-forwarded-host': 'localhost' }), 421)
  assert.is(await statusOf({ 'x-forwarded-host': 'evil.example' }), 421)
  await server.close()
})

test('wrong options of serve', async () => {
  const refuses = async (options: object, message: RegExp) => {
    const error = await failure(serve({ model: 'demo', port: 0, ...options } as never))
    assert.is(error.code, 'ERR_DIT_OPTION', error.message)
    assert.match(error.message, message)
  }
  await refuses({ model: '' }, /model/)
  await refuses({ model: {} }, /model/)
  await refuses({ model: { 'a/b': 'demo' } }, /name of a model/)
  await refuses({ port: 70_000 }, /port/)
  await refuses({ host: '::' }, /give a token/)
  await refuses({ host: '192.168.0.1' }, /give a token/)
  await refuses({ load: { devise: 'cpu' } }, /devise/)
  await refuses({ hots: 'a' }, /Did you mean 'host'/)
  assert.is(nameOf('facebook/DiT-XL-2-256'), 'DiT-XL-2-256')
  assert.is(nameOf('/models/my model.safetensors'), 'my-model')
  assert.is(nameOf('runs/photos/'), 'photos')
})

test.run()
