// scripts/gpu-check pack [--self-contained] [--without-cuda] [--emulator] [--quick]
//
// Builds, and puts into build/gpu-payload what a GPU machine without Node and network lacks, in
// archives that unpack over each other:
//
//   node.tar.xz       Node, which only the parts in JavaScript need
//   libraries.tar.xz  oneDNN and what it needs, npm packages
//   project.tar.xz    dit_native_test, dit_native.node, libdit_cuda.so, dist/, what was packed, and
//                     what is expected of the candidates, which this libdit_cuda.so has
//
// The first two are made again only when what is in them changes. The working tree is expected beside
// them there. --self-contained adds what is needed of the tree
// (scripts, the PyTorch peer, fixtures): then an empty folder will do. --without-cuda goes without
// libdit_cuda.so; --emulator adds libdit_cuda_emulated.so, to try the scripts without a GPU; --quick
// compresses little, for the same.
import { execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { variantPredictions } from '../cuda/variants.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')
const target = path.join(root, 'build/gpu-payload')
const candidatesBuild = 'build/gpu-candidates' // a build of its own, with -DDIT_CUDA_CANDIDATES=ON
const kMebibyte = 2 ** 20
const kPayloadLimit = 60 * kMebibyte
const kCallLimit = 64 * kMebibyte // payload and working tree, that travel together

const { values: flags } = parseArgs({
  options: {
    'self-contained': { type: 'boolean', default: false },
    'without-cuda': { type: 'boolean', default: false },
    emulator: { type: 'boolean', default: false },
    quick: { type: 'boolean', default: false },
  },
})
const xzOptions = ['--x86', `--lzma2=preset=${flags.quick ? '1' : '9e'}`]

// Of libraries that a program is linked to, those that no C++ compiler brings.
const carriedLibraries = /^lib(dnnl|gomp|OpenCL)\.so/
// Needed to build the package, not to run it.
const buildPackages = ['cmake-js', 'node-addon-api']
// Of the tree, what the checks and the timings read.
const treeParts = [
  'package.json',
  'scripts/gpu-check',
  'scripts/gpu',
  'bench/peers',
  ...['diffusers_pipeline', 'diffusion_schedule', 'dit_tiny_forward', 'dit_tiny_training'].map(
    (name) => `test/fixtures/${name}`,
  ),
  ...['full_size', 'manifest.json', 'sampling_trajectory', 'vae_tiny'].map(
    (name) => `test/fixtures/${name}`,
  ),
]

function fail(text) {
  console.error(`gpu-check pack: ${text}`)
  process.exit(1)
}

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] })
  if (status !== 0) fail(`${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`)
}

const output = (command, ...args) =>
  execFileSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 28 }).trim()

const inMebibytes = (bytes) => `${(bytes / kMebibyte).toFixed(1)} MiB`

// ---- what goes in ----

/** The shared libraries of a program that are to be carried, theirs included: [name, file]. */
function librariesOf(program) {
  return output('ldd', program)
    .split('\n')
    .map((line) => /^\s*(\S+) => (\/\S+)/.exec(line))
    .filter((match) => match !== null && carriedLibraries.test(match[1]))
    .map(([, name, file]) => [name, realpathSync(file)])
}

/** The folders of the packages that the package needs to run, from node_modules. */
function packagesOf(json, from, found = new Set()) {
  const names = Object.keys({ ...json.dependencies, ...json.optionalDependencies })
  for (const name of names) {
    if (buildPackages.includes(name)) continue
    // npm puts a second version of a package below the one that wants it.
    const places = [path.join(from, 'node_modules', name), path.join('node_modules', name)]
    const place = places.find((folder) => existsSync(path.join(root, folder, 'package.json')))
    if (place === undefined) {
      // The binaries of other systems are optional, and absent.
      if (name in (json.optionalDependencies ?? {})) continue
      fail(`node_modules has no ${name}: run \`npm ci\``)
    }
    if (found.has(place)) continue
    found.add(place)
    const own = JSON.parse(readFileSync(path.join(root, place, 'package.json'), 'utf8'))
    packagesOf(own, place, found)
  }
  return found
}

// ---- archives ----

/** A folder under construction, made an archive. */
class Archive {
  constructor(name) {
    this.file = path.join(target, `${name}.tar.xz`)
    this.folder = path.join(target, name)
    rmSync(this.folder, { recursive: true, force: true })
    mkdirSync(this.folder, { recursive: true })
  }

  place(to) {
    const file = path.join(this.folder, to)
    mkdirSync(path.dirname(file), { recursive: true })
    return file
  }

  add(from, to) {
    copyFileSync(from, this.place(to))
  }

  /** Without what only a debugger reads. */
  addStripped(from, to) {
    this.add(from, to)
    run('strip', '--strip-unneeded', path.join(this.folder, to))
  }

  addTree(from, to = from) {
    const leaveOut = /\.(d\.[cm]?ts|map|md|pyc)$|__pycache__/
    cpSync(path.join(root, from), this.place(to), {
      recursive: true,
      filter: (file) => !leaveOut.test(file),
    })
  }

  write() {
    const tar = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner']
    const all = `tar ${tar.join(' ')} -C "$1" -c . | xz ${xzOptions.join(' ')} >"$2"`
    run('bash', '-o', 'pipefail', '-c', all, 'bash', this.folder, this.file)
    rmSync(this.folder, { recursive: true })
  }
}

/** An archive that changes rarely and takes minutes: made again when what it is made of changes. */
function packOnce(name, madeOf, fill) {
  const made = JSON.stringify([xzOptions, madeOf])
  const record = path.join(target, `${name}.json`)
  const file = path.join(target, `${name}.tar.xz`)
  if (existsSync(file) && existsSync(record) && readFileSync(record, 'utf8') === made) return file
  console.error(`gpu-check pack: compressing ${name}`)
  rmSync(record, { force: true })
  const archive = new Archive(name)
  fill(archive)
  archive.write()
  writeFileSync(record, made)
  return file
}

const sizeOf = (file) => [file, statSync(file).size]

function packNode() {
  return packOnce('node', sizeOf(process.execPath), (archive) =>
    archive.addStripped(process.execPath, 'gpu/bin/node'),
  )
}

function packLibraries(libraries) {
  const readPackage = (folder) =>
    JSON.parse(readFileSync(path.join(root, folder, 'package.json'), 'utf8'))
  const packages = [...packagesOf(readPackage(''), '')]
  const madeOf = [
    libraries.map(([name, file]) => [name, ...sizeOf(file)]),
    packages.map((folder) => [folder, readPackage(folder).version]),
  ]
  return packOnce('libraries', madeOf, (archive) => {
    for (const [name, from] of libraries) archive.addStripped(from, `gpu/lib/${name}`)
    for (const folder of packages) archive.addTree(folder)
  })
}

function packProject({ cuda, emulator, selfContained }) {
  const project = new Archive('project')
  const binaries = [['build', 'dit_native.node']]
  // With the candidates, whose timings are what the machine is for.
  binaries.push([cuda ? candidatesBuild : 'build', 'dit_native_test'])
  if (cuda) binaries.push([candidatesBuild, 'libdit_cuda.so'])
  if (emulator) binaries.push(['build', 'libdit_cuda_emulated.so'])
  for (const [build, name] of binaries) {
    const from = path.join(root, build, 'Release', name)
    if (!existsSync(from)) fail(`the build made no ${build}/Release/${name}`)
    project.add(from, `build/Release/${name}`)
  }
  project.addTree('dist')
  project.addTree('package.json')
  if (selfContained) for (const part of treeParts) project.addTree(part)
  const changed = output('git', 'status', '--porcelain', '--untracked-files=no') !== ''
  const facts = {
    commit: `${output('git', 'rev-parse', '--short', 'HEAD')}${changed ? ' with changes' : ''}`,
    packed: new Date().toISOString(),
    node: process.version,
    compiler: output('c++', '--version').split('\n')[0],
    nvcc: cuda ? nvccVersion() : 'none',
    cudaBytes: cuda ? statSync(path.join(root, candidatesBuild, 'Release/libdit_cuda.so')).size : 0,
    candidates: cuda,
  }
  writeFileSync(project.place('gpu/predictions.json'), JSON.stringify(variantPredictions()))
  writeFileSync(project.place('gpu/payload.json'), `${JSON.stringify(facts, undefined, 2)}\n`)
  project.write()
  return project.file
}

function nvccVersion() {
  const { stdout } = spawnSync('nvcc', ['--version'], { encoding: 'utf8' })
  return /release [^\n]*/.exec(stdout ?? '')?.[0] ?? 'unknown'
}

/** The files that travel with a call beside the payload: [name, bytes]. */
function tree() {
  return output('git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z')
    .split('\0')
    .filter((file) => file !== '' && existsSync(path.join(root, file)))
    .map((file) => [file, statSync(path.join(root, file)).size])
}
const bytesOf = (sizes) => sizes.reduce((sum, [, size]) => sum + size, 0)

// ---- main ----

const cuda = !flags['without-cuda']
if (process.arch !== 'x64') fail(`GPU machines are x86-64, this one is ${process.arch}`)
run(process.execPath, 'scripts/build-native.mjs')
run(process.execPath, 'scripts/build-ts.mjs')
if (cuda && !existsSync(path.join(root, 'build/Release/libdit_cuda.so'))) {
  fail('there is no libdit_cuda.so: cmake found no nvcc. Without it, say --without-cuda')
}
if (cuda) {
  const jobs = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 1.5e9)))
  run('cmake', '-S', '.', '-B', candidatesBuild, '-DDIT_CUDA_CANDIDATES=ON')
  const targets = ['--target', 'dit_cuda', 'dit_native_test']
  run('cmake', '--build', candidatesBuild, '--parallel', String(jobs), ...targets)
}
mkdirSync(target, { recursive: true })
const files = [
  packNode(),
  packLibraries(librariesOf(path.join(root, 'build/Release/dit_native_test'))),
  packProject({ cuda, emulator: flags.emulator, selfContained: flags['self-contained'] }),
]
const sizes = files.map((file) => statSync(file).size)
const payload = sizes.reduce((sum, size) => sum + size, 0)
for (const [i, file] of files.entries()) {
  console.log(`${inMebibytes(sizes[i]).padStart(9)}  ${path.relative(root, file)}`)
}
console.log(`${inMebibytes(payload).padStart(9)}  in all (limit ${inMebibytes(kPayloadLimit)})`)
if (payload > kPayloadLimit) fail('the payload is too large')
if (!flags['self-contained']) {
  const all = tree()
  // Machines are given back soon after a call, so that one call should have everything.
  const idle = all.filter(
    ([file, size]) => size > 5 * kMebibyte && !treeParts.some((part) => file.startsWith(part)),
  )
  const small = bytesOf(all) - bytesOf(idle)
  const names = idle.map(([file]) => file).join(' and ')
  const calls = [
    ['all', bytesOf(all) + payload],
    [`all, while ${names} are elsewhere, which nothing there reads`, small + payload],
    ['libraries and project', bytesOf(all) + sizes[1] + sizes[2]],
  ]
  console.log(
    `With the working tree, ${inMebibytes(bytesOf(all))}, limit ${inMebibytes(kCallLimit)}:`,
  )
  for (const [what, size] of calls) {
    const verdict = size <= kCallLimit ? 'fits one call' : 'is too much for one call'
    console.log(`${inMebibytes(size).padStart(9)}  ${what}: ${verdict}`)
  }
}
