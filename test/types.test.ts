// The types that a user's code sees: test/consumer, compiled against the package as npm ships it.
// timeout: 120s
import { cpSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageRoot as root } from '../lib/root.cjs'
import { compile, userProject } from './helpers/compile.js'

/** A project with test/consumer in it. */
function project(): string {
  const folder = userProject()
  cpSync(path.join(root, 'test/consumer'), folder, { recursive: true })
  return folder
}

/** What is wrong in it: `noUncheckedIndexedAccess` and the oldest library that is enough, too. */
function check(folder: string, options: object = {}): string {
  const strict = { target: 'es2022', lib: undefined, noUncheckedIndexedAccess: true }
  return compile(folder, { ...strict, skipLibCheck: false, ...options })
}

for (const [name, options] of [
  ['strict, declarations checked too', {}],
  ['exact optional properties', { exactOptionalPropertyTypes: true }],
  ['a newer library', { lib: ['esnext'] }],
] as const) {
  test(`a user's modules compile, and their wrong uses do not: ${name}`, () => {
    assert.is(check(project(), options), '')
  })
}

test('the server, in an application of the user', () => {
  const folder = project()
  symlinkSync(path.join(root, 'node_modules/fastify'), path.join(folder, 'node_modules/fastify'))
  const uses = `
import Fastify from 'fastify'
import { DiT } from 'dit-native'
import { ditServer, serve, type DitServerOptions, type Server } from 'dit-native/server'
const model = await DiT.load('demo')
const options: DitServerOptions = { model: { a: model }, limits: { images: 4 }, token: ['x'] }
await Fastify({ logger: true }).register(ditServer, { ...options, prefix: '/a', logLevel: 'warn' })
await Fastify({ http2: false }).register(ditServer, { model, caller: (request) => request.ip })
const server: Server = await serve({ model: 'demo', load: { device: 'cpu', maxBatch: 2 }, logger: { level: 'info' } })
const url: string = server.url
// @ts-expect-error: no model
await Fastify().register(ditServer, { prefix: url })
// @ts-expect-error: a source is for serve
await Fastify().register(ditServer, { model: 'demo' })
`
  writeFileSync(path.join(folder, 'server.mts'), uses)
  writeFileSync(
    path.join(folder, 'server.cts'),
    "import server = require('dit-native/server')\nvoid server.serve({ model: 'demo' })\n",
  )
  assert.is(check(folder), '')
})

test('the check would notice', () => {
  const folder = project()
  writeFileSync(
    path.join(folder, 'wrong.mts'),
    "import { DiT } from 'dit-native'\nconst n: number = await DiT.load('x')\n// @ts-expect-error\nawait DiT.load('x')\n",
  )
  const output = check(folder)
  assert.match(output, /wrong\.mts\(2,7\): error TS2322/)
  assert.match(output, /wrong\.mts\(3,1\): error TS2578/)
})

test.run()
