// What the plugin tells of itself: figures, the OpenAPI document, its page; and how it fits into an application.
import Fastify from 'fastify'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type DiTError } from '../lib/index.js'
import { ditServer } from '../lib/server/index.js'
import { appWith, get, type Json, post, tinyModel } from './helpers/server.js'

const dit = await tinyModel()
test.after(() => dit.close())

test('figures', async () => {
  const model = await tinyModel()
  const counted = await appWith({ a: model })
  await post(counted, '/v1/images', { labels: [1, 2], seed: 1, steps: 2 })
  await post(counted, '/v1/images', { labels: [1], seed: 1, steps: 2 })
  await post(counted, '/v1/images', { labels: [1], steps: 0 })
  const { body, headers } = await get(counted, '/metrics')
  assert.match(String(headers['content-type']), 'text/plain')
  for (const line of [
    /^dit_server_images_total\{model="a",from="model"\} 2$/m,
    /^dit_server_images_total\{model="a",from="cache"\} 1$/m,
    /^dit_images_total\{model="a"\} 2$/m,
    /^dit_max_batch\{model="a"\} 4$/m,
    /^dit_lanes\{model="a"\} 0$/m,
    /^dit_waiting_images\{model="a"\} 0$/m,
    /^dit_round_seconds\{model="a"\} 0\.\d+/m,
    /^dit_refused_total\{model="a",kind="busy"\} 0$/m,
    /^dit_device_memory_bytes\{model="a",kind="weights"\} \d+$/m,
    /^dit_eventloop_delay_seconds\{quantile="0.99"\} /m,
    /^dit_http_request_duration_seconds_count\{method="POST",route="\/v1\/images",status="200"\} 2$/m,
    /^dit_http_request_duration_seconds_count\{method="POST",route="\/v1\/images",status="400"\} 1$/m,
    /^dit_server_images_in_flight 0$/m,
  ]) {
    assert.match(body, line)
  }
  await counted.close()
  await model.close()
})

test('the OpenAPI document tells of every route', async () => {
  const routes: string[] = []
  const own = Fastify()
  own.addHook('onRoute', ({ method, url, schema }) => {
    if ((schema as { hide?: boolean } | undefined)?.hide) return
    for (const one of [method].flat()) if (one !== 'HEAD') routes.push(`${one} ${url}`)
  })
  await own.register(ditServer, { model: dit, prefix: '/dit', token: 'secret' })
  await own.ready()
  const headers = { authorization: 'Bearer secret' }
  const document = (await get(own, '/dit/openapi.json', headers)).json()
  assert.is(document.openapi, '3.1.0')
  assert.type(document.info.version, 'string')
  const documented = Object.entries<Record<string, unknown>>(document.paths).flatMap(
    ([path, operations]) =>
      Object.keys(operations).map((method) => {
        return `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`
      }),
  )
  assert.equal(documented.sort(), routes.sort())
  assert.ok(documented.includes('POST /dit/v1/images/generations') && documented.length === 11)
  checkDocument(document)
  const guarded = document.paths['/dit/v1/images'].post
  assert.equal(guarded.security, [{ token: [] }])
  assert.is(document.paths['/dit/healthz'].get.security, undefined)
  await own.close()
})

function checkDocument(document: Json): void {
  const ids = new Set<string>()
  for (const [path, operations] of Object.entries<Record<string, Json>>(document.paths)) {
    for (const operation of Object.values(operations)) {
      assert.ok(!ids.has(operation.operationId), `${path}: ${operation.operationId}`)
      ids.add(operation.operationId)
      for (const text of [operation.operationId, operation.summary]) assert.type(text, 'string')
      const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name)
      const parameters = operation.parameters ?? []
      const named = parameters.filter((one: { in: string }) => one.in === 'path')
      assert.equal(
        named.map(({ name }: { name: string }) => name),
        inPath,
        path,
      )
      for (const { schema, required, in: place } of parameters) {
        checkSchema(schema, path)
        if (place === 'path') assert.is(required, true)
      }
      for (const { schema } of Object.values<Json>(operation.requestBody?.content ?? {})) {
        checkSchema(schema, path)
      }
      assert.ok(Object.keys(operation.responses).length > 0)
      for (const [status, response] of Object.entries<Json>(operation.responses)) {
        assert.match(status, /^[1-5]\d\d$/)
        assert.type(response.description, 'string', `${path} ${status}`)
        for (const { schema } of Object.values<Json>(response.content ?? {}))
          checkSchema(schema, path)
      }
      for (const scheme of operation.security ?? []) {
        for (const name of Object.keys(scheme)) assert.ok(document.components.securitySchemes[name])
      }
      for (const tag of operation.tags) {
        assert.ok(document.tags.some(({ name }: { name: string }) => name === tag))
      }
    }
  }
}

const kTypes = ['object', 'array', 'string', 'integer', 'number', 'boolean', 'null']

function checkSchema(schema: Json, where: string): void {
  assert.type(schema, 'object', where)
  for (const type of [schema.type ?? []].flat())
    assert.ok(kTypes.includes(type), `${where}: ${type}`)
  if (schema.type === 'array') checkSchema(schema.items, where)
  for (const one of schema.anyOf ?? []) checkSchema(one, where)
  const properties = Object.entries(schema.properties ?? {})
  for (const [name, property] of properties) checkSchema(property, `${where} ${name}`)
  for (const name of schema.required ?? []) {
    assert.ok(
      properties.some(([known]) => known === name),
      `${where}: ${name}`,
    )
  }
}

test('within an application, under a prefix, beside its own routes and errors', async () => {
  const own = Fastify()
  own.setErrorHandler((error, _, reply) => reply.code(418).send({ mine: (error as Error).message }))
  own.get('/mine', async () => {
    throw new Error('x')
  })
  own.post('/echo', async ({ body }) => body)
  await own.register(ditServer, { model: dit, prefix: '/pictures' })
  await own.register(ditServer, { model: { other: dit }, prefix: '/other', playground: false })
  await own.ready()
  assert.is((await get(own, '/mine')).status, 418)
  assert.equal((await post(own, '/echo', { a: 1 })).json(), { a: 1 })
  assert.is((await get(own, '/pictures/v1/models')).json().data[0].id, 'dit')
  assert.is((await get(own, '/other/v1/models')).json().data[0].id, 'other')
  assert.is((await get(own, '/v1/models')).status, 404)
  assert.is((await get(own, '/other/')).status, 404)
  const started = await post(own, '/pictures/v1/images', { labels: 1, steps: 1, wait: false })
  assert.is(started.status, 202)
  assert.match(started.json().events, /^\/pictures\/v1\/images\/[^/]+\/events$/)
  assert.match((await get(own, started.json().events)).body, 'event: done')
  await own.close()
})

test('JSON and nothing else, whatever the application around reads', async () => {
  const own = Fastify()
  own.removeAllContentTypeParsers()
  own.addContentTypeParser('application/json', { parseAs: 'buffer' }, async () => 'mine')
  own.addContentTypeParser('*', async () => ({ labels: 1, steps: 1 }))
  own.setReplySerializer((data) => JSON.stringify({ wrapped: data }))
  own.post('/echo', async ({ body }) => ({ body }))
  await own.register(ditServer, { model: dit, prefix: '/pictures' })
  await own.ready()
  const made = await post(own, '/pictures/v1/images', { labels: 1, steps: 1 })
  assert.equal([made.status, made.json().images.length], [200, 1])
  const poisoned = '{"labels": 1, "__proto__": {"steps": 1}}'
  const json = { 'content-type': 'application/json' }
  assert.is((await post(own, '/pictures/v1/images', poisoned, json)).status, 400)
  const text = { 'content-type': 'text/plain' }
  assert.is((await post(own, '/pictures/v1/images', '{"labels": 1}', text)).status, 415)
  assert.equal((await post(own, '/echo', {})).json(), { wrapped: { body: 'mine' } })
  await own.close()
})

test('the page at /', async () => {
  const app = await appWith(dit)
  const page = await get(app, '/')
  assert.is(page.status, 200)
  assert.match(String(page.headers['content-type']), 'text/html')
  const policy = String(page.headers['content-security-policy'])
  for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"]) {
    assert.ok(policy.includes(part), policy)
  }
  assert.not.match(policy, /unsafe|http/)
  const etag = String(page.headers.etag)
  const known = await get(app, '/', { 'if-none-match': etag })
  assert.equal([known.status, known.body], [304, ''])
  // All that it names lies beside it.
  for (const [, name = ''] of page.body.matchAll(/(?:src|href)="(?!data:|#)([^"]+)"/g)) {
    assert.not.match(name, /^(https?:)?\/\//)
    assert.is((await get(app, `/${name}`)).status, 200, name)
  }
  const prefixed = await appWith(dit, { prefix: '/try' })
  const redirected = await get(prefixed, '/try?a=1')
  assert.equal([redirected.status, redirected.headers.location], [308, './try/?a=1'])
  assert.is((await get(prefixed, '/try/')).body, page.body)
  await prefixed.close()
  // Where the application around forgives slashes: to no other machine.
  const forgiving = Fastify({ routerOptions: { ignoreDuplicateSlashes: true } })
  await forgiving.register(ditServer, { model: dit, prefix: '/:who' })
  const away = await get(forgiving, '//example.com')
  assert.equal([away.status, away.headers.location], [308, './example.com/'])
  await forgiving.close()
  await app.close()
})

test('wrong options of the plugin', async () => {
  const refuses = async (options: object, message: RegExp) => {
    const own = Fastify()
    own.register(ditServer, options as never)
    try {
      await own.ready()
    } catch (error) {
      assert.is((error as DiTError).code, 'ERR_DIT_OPTION')
      assert.match((error as Error).message, message)
      assert.not.match((error as Error).message, 'secret')
      return
    }
    assert.unreachable(JSON.stringify(Object.keys(options)))
  }
  await refuses({}, /model/)
  await refuses({ model: {} }, /Expected a DiT/)
  await refuses({ model: { a: 'demo' } }, /DiT.load/)
  await refuses({ model: { 'a b': dit } }, /for the name of a model/)
  await refuses({ model: dit, tokn: 'secret' }, /Did you mean 'token'/)
  await refuses({ model: dit, token: ['secret', ''] }, /token/)
  await refuses({ model: dit, token: 7 }, /token/)
  for (const token of ['two words of a secret', ' secret', 'secret\n', 'se\u00fccret']) {
    await refuses({ model: dit, token }, /without spaces/)
  }
  await refuses({ model: dit, limits: { images: 0 } }, /limits.images/)
  await refuses({ model: dit, limits: { image: 1 } }, /image/)
  await refuses({ model: dit, rateLimit: 5 }, /rateLimit/)
  const latents = await DiT.create({ depth: 1, hidden: 32, heads: 2, latentSize: 4, numClasses: 2 })
  await refuses({ model: latents }, /has no VAE/)
  await latents.close()
})

test.run()
