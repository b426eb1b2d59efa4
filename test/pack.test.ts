// The package as npm packs it: what is in it, what its binaries need, and that it works where there is
// nothing but Node, npm and a cache of npm's. `npm run test:pack` runs this file alone.
// timeout: 900s
import { execFileSync, spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageRoot as root } from '../lib/root.cjs'
import { BareRoot, type Ended } from './helpers/bare_root.js'
import { temporaryFolder } from './helpers/files.js'

const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
const kMebibyte = 2 ** 20
const kPackedLimit = 40 * kMebibyte
const kUnpackedLimit = 90 * kMebibyte
/** Without nvcc the build has no CUDA library, and so has the package of this test. */
const withCuda = existsSync(path.join(root, 'build/Release/libdit_cuda.so'))

/** All strings of a JSON value. */
function strings(value: unknown): string[] {
  if (typeof value === 'string') return [value]
  return Object.values(value as object).flatMap(strings)
}

function output(command: string, ...args: string[]): string {
  return execFileSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 26 })
}

function succeeded({ status, stdout, stderr }: Ended): string {
  assert.is(status, 0, `${stdout}\n${stderr}`)
  return stdout
}

// ---- the tarball ----

const folder = temporaryFolder()
const unpacked = path.join(folder, 'package')
const binaries = path.join(unpacked, 'prebuilds/linux-x64')
const tarball = path.join(folder, `dit-native-${manifest.version}.tgz`)

function pack(): void {
  const flags = withCuda ? [] : ['--without-cuda']
  output(process.execPath, 'scripts/prebuild.mjs', ...flags)
  output('npm', 'pack', '--ignore-scripts', '--silent', '--pack-destination', folder)
  output('tar', '-xzf', tarball, '-C', folder)
}
pack()

const files = readdirSync(unpacked, { recursive: true, encoding: 'utf8' })
  .filter((name) => !statSync(path.join(unpacked, name)).isDirectory())
  .sort()

test('the tarball holds what is needed and nothing else, and is small', () => {
  const kinds: Record<string, RegExp> = {
    dist: /^dist\/[\w./]+\.(js|mjs|cjs|d\.ts|d\.mts|d\.cts|html|css|svg)$|^dist\/package\.json$/,
    native: /^native\/[\w/]+\.(cc|h|cu|cuh|map)$/,
    demo: /^demo\/(README\.md|grid\.png|loss\.png|model\.safetensors)$/,
    scripts: /^scripts\/build-(native|tools)\.mjs$/,
    top: /^(CHANGELOG\.md|CMakeLists\.txt|LICENSE|README\.md|THIRD_PARTY_NOTICES|package\.json)$/,
  }
  const others = files.filter((file) => !Object.values(kinds).some((kind) => kind.test(file)))
  const cuda = withCuda ? ['libdit_cuda.so'] : []
  const names = ['libdit_cl.so', ...cuda, 'libdit_mp.so', 'libdit_nn.so', 'node.napi.glibc.node']
  assert.equal(
    others,
    names.map((name) => `prebuilds/linux-x64/${name}`),
  )
  const named = strings([manifest.main, manifest.types, manifest.exports, manifest.bin])
  for (const name of named) assert.ok(files.includes(path.normalize(name)), `${name} is missing`)
  const notices = readFileSync(path.join(unpacked, 'THIRD_PARTY_NOTICES'), 'utf8')
  for (const name of names) assert.ok(notices.includes(name), `${name} has no notice`)

  const bytes = (file: string) => statSync(file).size
  const size = bytes(tarball)
  const whole = files.reduce((sum, name) => sum + bytes(path.join(unpacked, name)), 0)
  const line = (count: number, name: string) => `${(count / kMebibyte).toFixed(2)} MiB ${name}`
  console.log(`${line(size, 'packed')}, ${line(whole, 'unpacked')}, ${files.length} files`)
  for (const name of names) console.log(line(bytes(path.join(binaries, name)), name))
  assert.ok(size < kPackedLimit && whole < kUnpackedLimit)
})

test('the linters of packages find nothing', () => {
  const bin = (name: string) => path.join(root, 'node_modules/.bin', name)
  for (const [command, ...args] of [
    [bin('publint'), 'run', tarball, '--strict'],
    [bin('attw'), tarball],
  ] as [string, ...string[]][]) {
    const { status, stdout, stderr } = spawnSync(command, args, { cwd: root, encoding: 'utf8' })
    assert.is(status, 0, stdout + stderr)
  }
})

// ---- its binaries ----

test('the binaries need glibc 2.34 and what Node needs, and show nothing of theirs', () => {
  const shown: Record<string, string[]> = {
    'node.napi.glibc.node': ['napi_register_module_v1', 'node_api_module_get_api_version_v1'],
    'libdit_cuda.so': ['ditCudaApi'],
  }
  const ofTheSystem = /^(ld-linux-x86-64|libc|libgcc_s|libm|libstdc\+\+)\.so\.\d$/
  const shipped = readdirSync(binaries)
  for (const name of shipped) {
    const file = path.join(binaries, name)
    const symbols = output('objdump', '-T', file)
    const newest = (pattern: RegExp) =>
      Math.max(0, ...[...symbols.matchAll(pattern)].map((match) => Number(match[1])))
    assert.ok(newest(/\bGLIBC_2\.(\d+)/g) <= 34 && !symbols.includes('GLIBC_PRIVATE'), name)
    // Ours have a libstdc++ of their own. oneDNN has not: it wants that of GCC 11, which systems with
    // glibc 2.34 have.
    const own = name !== 'libdit_nn.so'
    assert.ok(newest(/\bGLIBCXX_3\.4\.(\d+)/g) <= (own ? 0 : 29), name)

    const headers = output('objdump', '-p', file)
    const paths = [...headers.matchAll(/^ +(?:RPATH|RUNPATH) +(.*)$/gm)].map((match) => match[1])
    assert.equal(paths, name.endsWith('.node') ? ['$ORIGIN'] : [], name)
    for (const [, library = ''] of headers.matchAll(/^ +NEEDED +(\S+)$/gm)) {
      assert.ok(ofTheSystem.test(library) || shipped.includes(library), `${name} needs ${library}`)
    }
    if (name in shown) {
      const exported = output('nm', '-D', '--defined-only', '--format=just-symbols', file)
      assert.equal(exported.trim().split('\n').sort(), shown[name], name)
    }
    const named = readFileSync(file).includes(root)
    assert.not.ok(named, `${name} names the folder of the build`)
  }
})

/** What the build in the clone makes of seeds: hashes. */
let ofTheClone: string | undefined
function cloneBits(): string {
  ofTheClone ??= output(process.execPath, 'test/consumer/bits.mjs')
  return ofTheClone
}

test('they work beside another oneDNN and OpenMP in the same process', () => {
  // The build in the clone has the system's; npm's packages are found in the folder above.
  symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'))
  cpSync(path.join(root, 'test/consumer/bits.mjs'), path.join(unpacked, 'bits.mjs'))
  const program = `
    require(process.argv[1]).cpuDevice()
    import(process.argv[2]).then(() => {
      const { sharedObjects } = process.report.getReport()
      console.log(sharedObjects.map((file) => path.basename(file)).sort().join(' '))
    })`
  const other = path.join(root, 'build/Release/dit_native.node')
  const script = path.join(unpacked, 'bits.mjs')
  const [bits, loaded = ''] = output(process.execPath, '--eval', program, other, script).split('\n')
  assert.is(`${bits}\n`, cloneBits())
  for (const library of [/libdit_mp\.so/, /libdit_nn\.so/, /libdnnl\.so\.\d/, /libgomp\.so\.1/]) {
    assert.match(loaded, library)
  }
  rmSync(path.join(unpacked, 'bits.mjs'))
})

// ---- a machine that has nothing ----

/** npm's cache, with what the package depends on and nothing else. Kept for the next run. */
function npmCache(): string {
  const cache = path.join(root, 'build/pack-cache')
  const project = temporaryFolder()
  const { dependencies } = manifest
  writeFileSync(path.join(project, 'package.json'), JSON.stringify({ dependencies }))
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline']
  execFileSync('npm', ['install', ...flags, '--cache', cache], {
    cwd: project,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  return path.join(cache, '_cacache')
}

const bare = new BareRoot()
bare.copyIn(npmCache(), '/root/.npm/_cacache')
for (const name of ['bits.mjs', 'required.cjs', 'typed.ts', 'consumer.mts', 'consumer.cts']) {
  bare.copyIn(path.join(root, 'test/consumer', name), `/consumer/${name}`)
}
// For all folders below, as packages installed further up are.
for (const name of ['typescript', '@typescript', '@types/node', 'undici-types']) {
  bare.copyIn(path.join(root, 'node_modules', name), `/node_modules/${name}`)
}

/** A project inside, with the package installed from a tarball. */
function project(name: string, flags = '', archive = tarball): Ended {
  mkdirSync(path.join(bare.app, name))
  bare.copyIn(archive, `/app/${name}/${path.basename(archive)}`)
  writeFileSync(path.join(bare.app, name, 'package.json'), '{ "private": true, "type": "module" }')
  return bare.run(`npm install ./${path.basename(archive)} --offline ${flags}`, `/app/${name}`)
}

const sampleCommand = 'npx dit sample --model demo --labels 7 --seed 11 --device cpu --out x.png'

/** The pixels of what this command writes, in the clone. */
async function pixels(file: string): Promise<{ width: number; height: number; data: Buffer }> {
  const { data, info } = await sharp(file).raw().toBuffer({ resolveWithObject: true })
  return { width: info.width, height: info.height, data }
}

test('the machine has no compiler, none of the libraries, no network', () => {
  for (const name of ['cc', 'c++', 'g++', 'gcc', 'cmake', 'make', 'ninja', 'python3', 'curl']) {
    assert.is(bare.run(`command -v ${name}`).status, 127, name)
  }
  const libraries = succeeded(bare.run('ldconfig -p'))
  assert.not.match(libraries, /libdnnl|libgomp|libOpenCL|libcuda/)
  const connect =
    "require('node:net').connect(443, '1.1.1.1').on('error', (e) => console.log(e.code))"
  assert.match(succeeded(bare.run(`node -e "${connect}"`)), /ENETUNREACH/)
})

test('npm installs it offline and runs no script, and the command samples', async () => {
  const started = performance.now()
  succeeded(project('installed', '--ignore-scripts'))
  console.log(`installed in ${((performance.now() - started) / 1000).toFixed(1)} s`)
  const inside = '/app/installed'
  assert.not.ok(bare.has(`${inside}/node_modules/dit-native/build`), 'something was built')
  succeeded(bare.run(sampleCommand, inside))
  const made = bare.outside(`${inside}/x.png`)
  assert.is((await sharp(made).metadata()).format, 'png')
  const here = path.join(folder, 'x.png')
  output(
    process.execPath,
    'dist/cli/main.js',
    ...sampleCommand.replace('x.png', here).split(' ').slice(2),
  )
  assert.equal(await pixels(made), await pixels(here), 'the clone makes other pixels')
  assert.match(
    succeeded(bare.run('npx dit doctor', inside)),
    /prebuilt[\s\S]*dit-native works here/,
  )
})

test('ES modules and CommonJS run it, with the bits of the build in the clone', () => {
  const inside = '/app/installed'
  cpSync(bare.outside('/consumer'), bare.outside(`${inside}/consumer`), { recursive: true })
  const bits = succeeded(bare.run('node consumer/bits.mjs', inside))
  assert.match(bits, /^[0-9a-f]{64} [0-9a-f]{64}\n$/)
  assert.is(bits, cloneBits())
  const size = '32 32'
  assert.is(
    succeeded(bare.run('node consumer/required.cjs', inside)),
    `${manifest.version} ${size}\n`,
  )
})

for (const [name, type, options] of [
  ['node16, ES modules', 'module', { module: 'node16', moduleResolution: 'node16' }],
  ['node16, CommonJS', 'commonjs', { module: 'node16', moduleResolution: 'node16' }],
  ['bundler', 'module', { module: 'esnext', moduleResolution: 'bundler' }],
] as const) {
  test(`TypeScript compiles and runs with it: ${name}`, () => {
    const inside = '/app/installed/typed'
    rmSync(bare.outside(inside), { recursive: true, force: true })
    mkdirSync(bare.outside(inside))
    const sources = ['typed.ts', ...(name === 'bundler' ? [] : ['consumer.mts', 'consumer.cts'])]
    for (const source of sources) {
      cpSync(bare.outside(`/consumer/${source}`), bare.outside(`${inside}/${source}`))
    }
    const compilerOptions = {
      ...options,
      target: 'es2022',
      lib: ['es2022', 'esnext.disposable'],
      types: ['node'],
      strict: true,
      noUncheckedIndexedAccess: true,
    }
    const write = (file: string, json: object) =>
      writeFileSync(bare.outside(`${inside}/${file}`), JSON.stringify(json))
    write('package.json', { private: true, type })
    write('tsconfig.json', { compilerOptions, include: sources })
    succeeded(bare.run('node /node_modules/typescript/bin/tsc', inside))
    assert.is(succeeded(bare.run('node typed.js', inside)), '32 ERR_DIT_CLOSED\n')
  })
}

// ---- a package without its binaries, as on a system that has none ----

test('where there is no binary and no compiler, it says what to do', () => {
  rmSync(path.join(unpacked, 'prebuilds'), { recursive: true })
  const without = path.join(folder, 'without.tgz')
  output('tar', '-czf', without, '-C', folder, 'package')
  succeeded(project('without', '', without))
  const sampled = bare.run(sampleCommand, '/app/without')
  assert.is(sampled.status, 1)
  assert.match(
    sampled.stderr,
    /has no binary, .* apt-get install cmake g\+\+ libdnnl-dev\), then run `npm run build:native` in \/app/,
  )
  const built = bare.run('npm run build:native', '/app/without/node_modules/dit-native')
  assert.is(built.status, 1)
  assert.match(built.stderr, /needs what this system lacks: cmake, make, g\+\+, libdnnl-dev\./)
})

test.run()
