// Runs a job of the project (`npm test`, `npm run demo`, …) after installing and building what it
// needs and finds missing. Works as the first command in a fresh clone, so it uses Node alone.
//
//   node scripts/bootstrap.mjs test | test:fast | test:full | test:sanitize | demo | bench | bench:load |
//       quality | lint | build
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { missingPackages, works } from './build-tools.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
process.chdir(root)

const tsx = (...args) => [process.execPath, '--import', 'tsx', ...args]
const jobs = {
  test: tsx('test/run.ts'),
  'test:fast': tsx('test/run.ts', '--suite=fast'),
  'test:full': tsx('test/run.ts', '--suite=full'),
  'test:sanitize': [process.execPath, 'scripts/sanitize.mjs'],
  demo: tsx('demo/demo.ts'),
  bench: tsx('bench/bench.ts'),
  'bench:load': tsx('bench/load/load.ts'),
  quality: tsx('bench/quality/quality.ts'),
  lint: ['scripts/lint'],
  build: [process.execPath, 'scripts/build-ts.mjs'],
}

function say(text) {
  console.log(`bootstrap: ${text}`)
}

function fail(text) {
  console.error(`bootstrap: ${text}`)
  process.exit(1)
}

/** Whether the command ran and succeeded. Its output is shown. */
function run(command, ...args) {
  return spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] }).status === 0
}

// ---- what the system must have ----

/** How apt-get can be run without asking anybody, or undefined. */
function aptGet() {
  if (!works('apt-get', ['--version'])) return undefined
  if (process.getuid() === 0) return ['apt-get']
  return works('sudo', ['-n', 'true']) ? ['sudo', '-n', 'apt-get'] : undefined
}

function install(apt, packages) {
  say(`installing ${packages.join(' ')} (${apt.join(' ')} install)`)
  process.env.DEBIAN_FRONTEND = 'noninteractive'
  const [command, ...args] = apt
  if (!run(command, ...args, 'update', '-qq')) say('apt-get update failed; trying without it')
  return run(command, ...args, 'install', '-y', '-qq', '--no-install-recommends', ...packages)
}

function ensurePackages() {
  const missing = missingPackages()
  if (missing.length === 0) return
  const line = `apt-get install ${missing.join(' ')}`
  const apt = aptGet()
  if (apt === undefined) {
    fail(
      `missing: ${missing.join(', ')}. As root, run\n\n    ${line}\n\n` +
        "or, where there is no apt-get, install the same with this system's package manager " +
        '(libdnnl-dev is oneDNN with its headers).',
    )
  }
  if (!install(apt, missing)) fail(`the installation failed. As root, run\n\n    ${line}\n`)
  const still = missingPackages()
  if (still.length > 0) fail(`installed, but g++ does not find it: ${still.join(', ')}`)
}

/** The C++ half of the linter is wanted, not needed: without it the other half still runs. */
function ensureClangFormat() {
  if (works('clang-format', ['--version'])) return
  const apt = aptGet()
  if (apt !== undefined) install(apt, ['clang-format'])
}

/** What tests start, and the package that brings it. Without one, its tests fail and say so. */
const testTools = [
  ['chromium', 'chromium', '--version'],
  ['curl', 'curl', '--version'],
  ['debootstrap', 'debootstrap', '--version'],
  ['redis-server', 'redis-server', '--version'],
  ['python3-numpy', 'python3', '-c', 'import numpy'],
]

/** What reads the machine code of kernels; not every CUDA toolkit has it. test/sass.test.ts says what is missing. */
function ensureCudaTools() {
  const nvcc = ['nvcc', '/usr/local/cuda/bin/nvcc'].some((file) => works(file, ['--version']))
  if (!nvcc || aptGet() === undefined) return
  if (!run(process.execPath, 'scripts/cuda-sass.mjs', '--fetch')) say('without cuobjdump')
}

function ensureTestTools() {
  const missing = testTools.filter(([, command, ...args]) => !works(command, args))
  const apt = aptGet()
  const packages = missing.map(([name]) => name)
  if (missing.length > 0 && apt !== undefined) install(apt, packages)
}

// ---- npm packages ----

/** Whether node_modules holds what package-lock.json asks for, by npm's own record of it. */
function nodeModulesFit() {
  const record = 'node_modules/.package-lock.json'
  if (!existsSync(record)) return false
  const wanted = JSON.parse(readFileSync('package-lock.json', 'utf8')).packages
  const there = JSON.parse(readFileSync(record, 'utf8')).packages
  return Object.entries(wanted).every(([place, { version, optional }]) => {
    if (place === '' || (optional && !(place in there))) return true // the binaries of other systems
    return there[place]?.version === version
  })
}

function ensureNodeModules() {
  if (nodeModulesFit()) return
  say('installing the npm packages')
  // No package here needs its install script: the binaries of sharp, esbuild and Biome are packages.
  const flags = ['--ignore-scripts', '--include=dev', '--no-audit', '--no-fund']
  if (run('npm', 'ci', ...flags)) return
  say('npm ci failed; trying npm install')
  if (!run('npm', 'install', '--no-save', ...flags)) fail('npm could not install the packages')
}

// ---- main ----

const [name, ...args] = process.argv.slice(2)
const job = jobs[name]
if (job === undefined) fail(`expected one of ${Object.keys(jobs).join(', ')}, got ${name}`)
const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 20 || (major === 20 && minor < 9)) {
  fail(`Node.js 20.9 or newer is needed; this is ${process.versions.node}`)
}

if (name === 'lint') {
  ensureClangFormat()
  ensureNodeModules()
} else {
  ensurePackages()
  if (name === 'test' || name === 'test:full') {
    ensureTestTools()
    ensureCudaTools()
  }
  ensureNodeModules()
  if (!run(process.execPath, 'scripts/build-native.mjs')) fail('the native build failed')
}
const { status } = spawnSync(job[0], [...job.slice(1), ...args], { stdio: 'inherit' })
process.exit(status ?? 1)
