// The types that a user's code sees: test/consumer, compiled against the package as npm ships it.
// timeout: 120s
import { spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryFolder } from './helpers/files.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const tsc = path.join(root, 'node_modules/typescript/bin/tsc')

function run(...args: string[]): string {
  const { status, stdout } = spawnSync(process.execPath, [tsc, ...args], { encoding: 'utf8' })
  return status === 0 ? '' : stdout
}

/** A project with the package and Node's types installed, and nothing else. */
function project(options: object): string {
  const folder = temporaryFolder()
  const installed = path.join(folder, 'node_modules/dit-native')
  mkdirSync(installed, { recursive: true })
  copyFileSync(path.join(root, 'package.json'), path.join(installed, 'package.json'))
  cpSync(path.join(root, 'dist'), path.join(installed, 'dist'), { recursive: true })
  mkdirSync(path.join(folder, 'node_modules/@types'))
  for (const name of ['@types/node', 'undici-types']) {
    symlinkSync(path.join(root, 'node_modules', name), path.join(folder, 'node_modules', name))
  }
  cpSync(path.join(root, 'test/consumer'), folder, { recursive: true })
  const compilerOptions = {
    target: 'es2022',
    module: 'nodenext',
    strict: true,
    noUncheckedIndexedAccess: true,
    noEmit: true,
    types: ['node'],
    ...options,
  }
  writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions }))
  return folder
}

for (const [name, options] of [
  ['strict, declarations checked too', { skipLibCheck: false }],
  ['exact optional properties', { exactOptionalPropertyTypes: true }],
  ['a newer library', { lib: ['esnext'] }],
] as const) {
  test(`a user's modules compile, and their wrong uses do not: ${name}`, () => {
    assert.is(run('-p', project(options)), '')
  })
}

test('the server, in an application of the user', () => {
  const folder = project({})
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
  assert.is(run('-p', folder), '')
})

test('the check would notice', () => {
  const folder = project({})
  writeFileSync(
    path.join(folder, 'wrong.mts'),
    "import { DiT } from 'dit-native'\nconst n: number = await DiT.load('x')\n// @ts-expect-error\nawait DiT.load('x')\n",
  )
  const output = run('-p', folder)
  assert.match(output, /wrong\.mts\(2,7\): error TS2322/)
  assert.match(output, /wrong\.mts\(3,1\): error TS2578/)
})

test.run()
