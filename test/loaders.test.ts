// The ways in which programs load the package: in what order threads do, again and again, from
// contexts of `vm`, out of a bundle; and what the binary asks of the runtime that loads it.
// timeout: 180s
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type BuildOptions, build } from 'esbuild'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { nativeFile } from '../lib/native.js'
import { runScript } from './helpers/child.js'
import { temporaryFolder } from './helpers/files.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const dist = path.join(root, 'dist/index.js')

/** Runs a script that is to print what is expected, and nothing else. */
async function prints(expected: string, script: string): Promise<void> {
  const ended = await runScript(script)
  assert.is(ended.stdout, `${expected}\n`, ended.stderr)
  assert.is(ended.stderr, '')
  assert.is(ended.status, 0)
}

// A number that stands for an image.
const sum = `
  const sum = async ({ DiT }) => {
    const dit = await DiT.load('demo', { precision: 'fp32', threads: 2 })
    const [image] = await dit.sample(7, { steps: 3, seed: 3 })
    await dit.close()
    return image.data.reduce((sum, byte, i) => (sum * 31 + byte * i) % 65521, 1)
  }`

// ---- threads ----

const inWorker = `
  const { Worker } = require('node:worker_threads')
  const source = ${JSON.stringify(`${sum}
    sum(require('dit-native')).then((one) => require('node:worker_threads').parentPort.postMessage(one))`)}
  const main = () => sum(require('dit-native'))
  const worker = () => new Promise((resolve, reject) => {
    let one
    new Worker(source, { eval: true })
      .on('error', reject)
      .on('message', (message) => { one = message })
      .on('exit', () => resolve(one))
  })`

for (const [name, order] of Object.entries({
  'the main thread, then workers': '[await main(), await worker(), await worker(), await main()]',
  'workers, one after the other, then the main thread':
    '[await worker(), await worker(), await worker(), await main(), await worker()]',
  'all at once': 'await Promise.all([worker(), main(), worker(), worker()])',
  'workers at once, and no main thread': 'await Promise.all([worker(), worker(), worker()])',
})) {
  test(`loaded by ${name}: the same image each time`, async () => {
    await prints(
      '1 number',
      `${sum}${inWorker}
      ;(async () => {
        const sums = ${order}
        console.log(new Set(sums).size, typeof sums[0])
      })()`,
    )
  })
}

// ---- modules that are forgotten, and other contexts ----

test('loaded again after the module cache was emptied, as tests do: a copy beside the others', async () => {
  // 15: more than the listeners that Node lets a program add without a warning.
  await prints(
    '15 1 true false ERR_DIT_FILE 0',
    `${sum}
    ;(async () => {
      const [copies, sums] = [new Set(), new Set()]
      for (let i = 0; i < 15; i++) {
        for (const file of Object.keys(require.cache)) delete require.cache[file]
        const copy = require('dit-native')
        copies.add(copy)
        sums.add(await sum(copy))
      }
      const [first, second] = copies
      const error = await first.DiT.load('/nowhere/at/all').catch((error) => error)
      const listeners = process.listenerCount('exit') // none without a model
      console.log(copies.size, sums.size, error instanceof first.DiTError,
        error instanceof second.DiTError, error.code, listeners)
    })()`,
  )
})

test('copies of the package with models at once', async () => {
  await prints(
    '1 2 0',
    `${sum}
    ;(async () => {
      const one = require('dit-native')
      await sum(one) // loads the binary, which the copy will load again
      for (const file of Object.keys(require.cache)) delete require.cache[file]
      const two = require('dit-native')
      const open = await Promise.all([one, two].map(({ DiT }) => DiT.load('demo')))
      const sums = await Promise.all([one, two, one, two].map(sum))
      const listeners = process.listenerCount('exit')
      await Promise.all(open.map((dit) => dit.close()))
      console.log(new Set(sums).size, listeners, process.listenerCount('exit'))
    })()`,
  )
})

test('evaluated in contexts of vm with a loader of their own, as Jest does', async () => {
  // Each context has its own globals, so its own Error, Float32Array and DiTError.
  await prints(
    '1 true,false,ERR_DIT_FILE,1024 true,false,ERR_DIT_FILE,1024',
    `${sum}
    const { readFileSync } = require('node:fs')
    const { createRequire, isBuiltin } = require('node:module')
    const path = require('node:path')
    const vm = require('node:vm')
    const load = (file, context, cache) => {
      if (cache.has(file)) return cache.get(file).exports
      const module = { exports: {} }
      cache.set(file, module)
      const source = readFileSync(file, 'utf8')
      if (file.endsWith('.json')) return (module.exports = JSON.parse(source))
      const wrapper = vm.runInContext('(function (exports, require, module, __filename, __dirname) {' + source + '\\n})',
        context, { filename: file })
      const real = createRequire(file)
      const own = (name) => {
        if (isBuiltin(name)) return require(name)
        const found = real.resolve(name)
        return found.startsWith(${JSON.stringify(path.dirname(dist))}) ? load(found, context, cache) : real(name)
      }
      wrapper(module.exports, own, module, file, path.dirname(file))
      return module.exports
    }
    ;(async () => {
      const sums = new Set([await sum(require('dit-native'))])
      const found = []
      for (let i = 0; i < 2; i++) {
        const context = vm.createContext({ process, Buffer, console, setTimeout, setImmediate, queueMicrotask,
          AbortController, AbortSignal, URL, TextDecoder, TextEncoder, performance, structuredClone })
        const copy = load(${JSON.stringify(dist)}, context, new Map())
        sums.add(await sum(copy))
        const error = await copy.DiT.load('/nowhere/at/all').catch((error) => error)
        const dit = await copy.DiT.load('demo')
        const data = vm.runInContext('new Float32Array(1024)', context)
        const noise = await dit.denoise({ x: { data, shape: [1, 1, 32, 32] }, t: 500, y: 1 })
        await dit.close()
        found.push([error instanceof copy.DiTError, error instanceof Error, error.code,
          noise.data.length].join())
      }
      console.log(sums.size, ...found)
    })()`,
  )
})

// ---- bundles ----

const app = `
  import { DiT } from 'dit-native'
  const dit = await DiT.load('demo')
  const [image] = await dit.sample(7, { steps: 2, seed: 1 })
  console.log(image.width)
  await dit.close()`

/** Bundles a program and runs it; what it says. */
async function bundled(options: BuildOptions): Promise<{ status: number; output: string }> {
  const folder = temporaryFolder()
  const esm = options.format === 'esm'
  const file = path.join(folder, 'out', esm ? 'app.mjs' : 'app.cjs')
  const body = esm ? app : app.replace(/const dit[\s\S]*/, (rest) => `(async () => {${rest}})()`)
  await build({
    stdin: { contents: body, resolveDir: root },
    bundle: true,
    platform: 'node',
    outfile: file,
    logLevel: 'silent',
    ...options,
  })
  // Where an application has it: in a folder node_modules above the bundle.
  execFileSync('mkdir', ['-p', path.join(folder, 'node_modules')])
  execFileSync('ln', ['-s', root, path.join(folder, 'node_modules/dit-native')])
  writeFileSync(path.join(folder, 'package.json'), '{ "name": "an-app", "version": "0.1.0" }')
  try {
    const output = execFileSync(process.execPath, [file], { encoding: 'utf8', stdio: 'pipe' })
    return { status: 0, output }
  } catch (error) {
    const { status, stderr } = error as { status: number; stderr: string }
    return { status, output: stderr }
  }
}

for (const format of ['cjs', 'esm'] as const) {
  test(`a bundle (${format}) with the package external works`, async () => {
    assert.equal(await bundled({ format, external: ['dit-native'] }), { status: 0, output: '32\n' })
  })
}

test('a bundle that has swallowed the package says that it must be external', async () => {
  const { status, output } = await bundled({ format: 'cjs', external: ['sharp'] })
  assert.is(status, 1)
  assert.match(output, /ERR_DIT_PLATFORM/)
  assert.match(output, /bundle/)
  assert.match(output, /external/)
})

// ---- the binary ----

test('the binary asks for Node-API 8 at most, and for no external buffers', () => {
  const fromCmakeJs = createRequire(createRequire(import.meta.url).resolve('cmake-js/package.json'))
  const { v8 } = fromCmakeJs('node-api-headers').symbols as {
    v8: { js_native_api_symbols: string[]; node_api_symbols: string[] }
  }
  const known = new Set([...v8.js_native_api_symbols, ...v8.node_api_symbols])
  assert.ok(known.size > 100)
  const table = execFileSync('objdump', ['-T', nativeFile()], { encoding: 'utf8' })
  const wanted = [...table.matchAll(/\*UND\*.* (\S+)$/gm)].map(([, name]) => name as string)
  const api = wanted.filter((name) => /^(napi|node_api)_/.test(name))
  assert.ok(api.length > 40, 'it is an addon')
  assert.equal(
    api.filter((name) => !known.has(name)),
    [],
  )
  assert.equal(
    api.filter((name) => /external|_buffer$/.test(name)),
    [],
  )
  // Nothing of V8, libuv or Node itself, which change from version to version.
  assert.equal(
    wanted.filter((name) => /^(uv_|_ZN2v8|_ZN4node|_ZNK2v8)/.test(name)),
    [],
  )
  // What it tells the runtime it needs.
  const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  assert.equal(manifest.binary.napi_versions, [8])
})

test('threads that wait leave the processor soon, unless the environment says how', () => {
  const spins = (env: NodeJS.ProcessEnv) => {
    const { stderr } = spawnSync(
      process.execPath,
      ['-e', `require(${JSON.stringify(root)}).DiT.devices()`],
      { encoding: 'utf8', env: { PATH: process.env.PATH, OMP_DISPLAY_ENV: 'verbose', ...env } },
    )
    return /GOMP_SPINCOUNT = '(\w+)'/.exec(stderr)?.[1]
  }
  assert.is(spins({}), '1000')
  assert.is(spins({ GOMP_SPINCOUNT: '77' }), '77')
  assert.is(spins({ OMP_WAIT_POLICY: 'passive' }), '0')
})

test.run()
