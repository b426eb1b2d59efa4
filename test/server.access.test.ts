// Who may ask the plugin for how much, and what is told when it cannot be done.
import Fastify from 'fastify'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiTError } from '../lib/index.js'
import { ditServer } from '../lib/server/index.js'
import { appWith, get, post, tinyModel } from './helpers/server.js'

const dit = await tinyModel()
test.after(() => dit.close())

test('a token: asked for where it matters, and never told', async () => {
  const lines: string[] = []
  const logged = Fastify({
    logger: { level: 'trace', stream: { write: (line) => lines.push(line) } },
  })
  await logged.register(ditServer, { model: dit, token: ['first-secret', 'second-secret'] })
  await logged.ready()
  const authorized = { authorization: 'Bearer second-secret' }
  for (const url of ['/v1/models', '/v1/models/dit/classes', '/metrics', '/openapi.json']) {
    const none = await get(logged, url)
    assert.is(none.status, 401, url)
    assert.match(String(none.headers['www-authenticate']), 'Bearer')
    assert.is(none.json().error.type, 'authentication_error')
    assert.is((await get(logged, url, authorized)).status, 200, url)
  }
  for (const authorization of [
    'Bearer third',
    'Bearer ',
    'first-secret',
    'Basic first-secret',
    'Bearer first-secret x',
  ]) {
    const answer = await post(logged, '/v1/images', { labels: 1, steps: 1 }, { authorization })
    assert.is(answer.status, 401, authorization)
  }
  // Refused before the body is looked at.
  assert.is((await post(logged, '/v1/images', { nonsense: 1 })).status, 401)
  assert.is((await post(logged, '/v1/images', { labels: 1, steps: 1 }, authorized)).status, 200)
  for (const url of ['/healthz', '/readyz', '/'])
    assert.is((await get(logged, url)).status, 200, url)
  assert.ok(lines.length > 10)
  assert.not.match(lines.join(''), 'secret')
  await logged.close()
})

test('an answer at once, by the header Prefer', async () => {
  const app = await appWith(dit)
  const prefer = { prefer: 'wait=5, respond-async' }
  const started = await post(app, '/v1/images', { labels: 1, steps: 2 }, prefer)
  assert.is(started.status, 202)
  assert.is(started.headers['preference-applied'], 'respond-async')
  assert.match((await get(app, started.json().events)).body, 'event: done')
  const waited = await post(
    app,
    '/v1/images',
    { labels: 1, steps: 2 },
    { prefer: 'return=minimal' },
  )
  assert.is(waited.status, 200)
  const unknown = await app.inject({ method: 'DELETE', url: '/v1/images/unknown' })
  assert.is(unknown.statusCode, 404)
  await app.close()
})

test('others see nothing of a request', async () => {
  const shared = await appWith(dit, { token: ['one', 'two'] })
  const as = (token: string) => ({ authorization: `Bearer ${token}` })
  const body = { labels: 1, steps: 1, wait: false }
  const { events, id } = (await post(shared, '/v1/images', body, as('one'))).json()
  assert.is((await get(shared, events, as('two'))).status, 404)
  const remove = (token: string) =>
    shared.inject({ method: 'DELETE', url: `/v1/images/${id}`, headers: as(token) })
  assert.is((await remove('two')).statusCode, 404)
  assert.match((await get(shared, events, as('one'))).body, 'event: done')
  assert.is((await remove('one')).statusCode, 204)
  await shared.close()
})

test('requests that ended are forgotten, also those without images', async () => {
  const app = await appWith(dit, { limits: { keepBytes: 32_768, steps: 1000 } })
  const cancelled: string[] = []
  for (let i = 0; i < 10; i++) {
    const body = { labels: [1, 2, 3, 4], steps: 1000, wait: false }
    const { id, events } = (await post(app, '/v1/images', body)).json()
    const watched = get(app, events)
    await app.inject({ method: 'DELETE', url: `/v1/images/${id}` })
    assert.match((await watched).body, 'event: error')
    cancelled.push(events)
  }
  const answers = await Promise.all(cancelled.map((events) => get(app, events)))
  const known = answers.map(({ status }) => status === 200)
  assert.is(known.at(-1), true)
  assert.is(known[0], false)
  await app.close()
})

test('more images than can ever be under way are wrong, not too early', async () => {
  const app = await appWith(dit, { limits: { inFlight: 2 } })
  assert.is((await post(app, '/v1/images', { labels: [1, 2], steps: 1 })).status, 200)
  assert.is((await post(app, '/v1/images', { labels: [1, 2, 3], steps: 1 })).status, 400)
  assert.is((await get(app, '/v1/models')).json().data[0].dit.limits.images, 2)
  await app.close()
})

test('too many images at once', async () => {
  const small = await appWith(dit, { limits: { inFlight: 3 } })
  const [first, second] = await Promise.all([
    post(small, '/v1/images', { labels: [1, 2], steps: 20 }),
    post(small, '/v1/images', { labels: [1, 2], steps: 20 }),
  ])
  assert.is(first?.status, 200)
  assert.is(second?.status, 429)
  assert.ok(Number(second?.headers['retry-after']) >= 1)
  assert.is(second?.json().error.code, 'ERR_DIT_BUSY')
  assert.is((await post(small, '/v1/images', { labels: [1, 2], steps: 1 })).status, 200)
  await small.close()
})

test("the model's queue is full, or the deadline cannot be met", async () => {
  const busy = await tinyModel(1, 2)
  const queued = await appWith(busy)
  const many = await Promise.all(
    Array.from({ length: 8 }, () =>
      post(queued, '/v1/images', { labels: 1, steps: 100, wait: true }),
    ),
  )
  const refused = many.filter(({ status }) => status !== 200)
  assert.ok(refused.length > 0 && refused.length < 8)
  for (const { status, headers, json } of refused) {
    assert.is(status, 429)
    assert.ok(Number(headers['retry-after']) >= 1)
    assert.is(json().error.code, 'ERR_DIT_BUSY')
  }
  const late = await post(queued, '/v1/images', { labels: 1, steps: 250, deadline: 1 })
  assert.ok(late.status === 503 || late.status === 504, late.body)
  assert.is(late.json().error.code, 'ERR_DIT_DEADLINE')
  assert.is(
    (await post(queued, '/v1/images', { labels: 1, steps: 1, deadline: 60_000 })).status,
    200,
  )
  // Told at once, where nobody waits for the images.
  const jobs = Array.from({ length: 8 }, () =>
    post(queued, '/v1/images', { labels: 1, steps: 100, wait: false }),
  )
  const statuses = (await Promise.all(jobs)).map(({ status }) => status)
  assert.ok(statuses.includes(202) && statuses.includes(429), String(statuses))
  await queued.close()
  await busy.close()
})

test('requests in a minute', async () => {
  const slow = await appWith(dit, { rateLimit: { requests: 2, seconds: 60 } })
  const ask = () => post(slow, '/v1/images', { labels: 1, steps: 1 })
  const other = { prompt: 'tabby', steps: 1 }
  assert.is((await ask()).status, 200)
  assert.is((await post(slow, '/v1/images/generations', other)).status, 200, 'counted together')
  const third = await ask()
  assert.is(third.status, 429)
  assert.ok(Number(third.headers['retry-after']) >= 1)
  assert.is(third.json().error.type, 'rate_limit_error')
  assert.is((await post(slow, '/v1/images/generations', other)).status, 429)
  assert.is((await get(slow, '/v1/models')).status, 200)
  await slow.close()
})

test("what fails here is told without its inside, and a closed model isn't ready", async () => {
  const model = await tinyModel()
  const failing = await appWith({ a: model })
  assert.is((await get(failing, '/readyz')).status, 200)
  const sample = model.stream.bind(model)
  const throwing = (error: Error) => {
    model.stream = async function* () {
      yield await Promise.reject(error)
    }
  }
  throwing(new DiTError('ERR_DIT_NONFINITE', 'image 0 in /secret/place'))
  const nonfinite = await post(failing, '/v1/images', { labels: 1 })
  assert.is(nonfinite.status, 500)
  assert.is(nonfinite.json().error.code, 'ERR_DIT_NONFINITE')
  throwing(new TypeError('secret is not a function'))
  const defect = await post(failing, '/v1/images', { labels: 1 })
  assert.is(defect.status, 500)
  assert.is(defect.json().error.code, 'ERR_DIT_INTERNAL')
  assert.not.match(nonfinite.body + defect.body, 'secret')
  throwing(new DiTError('ERR_DIT_OOM', 'no memory'))
  assert.is((await post(failing, '/v1/images', { labels: 1 })).status, 503)
  throwing(new DiTError('ERR_DIT_DEVICE_LOST', 'an illegal address'))
  const lost = await post(failing, '/v1/images', { labels: 1 })
  assert.is(lost.status, 503)
  assert.match((await get(failing, '/readyz')).body, 'the device of a failed')
  assert.is((await get(failing, '/healthz')).status, 200)
  model.stream = sample
  await failing.close()

  const closing = await appWith({ a: model })
  await model.close()
  const ready = await get(closing, '/readyz')
  assert.is(ready.status, 503)
  assert.match(ready.body, 'a was closed')
  const answer = await post(closing, '/v1/images', { labels: 1, steps: 1 })
  assert.is(answer.status, 503)
  assert.is(answer.json().error.code, 'ERR_DIT_CLOSED')
  assert.is((await get(closing, '/metrics')).status, 200)
  await closing.close()
})

test.run()
