#!/usr/bin/env node
// What prebuildify calls as `node-gyp rebuild --target=<version of Node> …`, in build/prebuild. The
// arguments are of no use: Node-API is the same in every version, and cmake-js takes --target for a
// target of CMake's. Builds with cmake-js, and leaves in ./build/Release what a package needs: the
// addon, the CUDA library, oneDNN and what that needs beyond what every system with Node has.
//
// The libraries come under names of our own. A process has one library of each name (its SONAME), the
// first that anybody loaded; so another module's libgomp.so.1 or libdnnl.so.2, perhaps older than
// ours, would otherwise be taken in the place of ours, or ours in the place of its own.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')
const build = path.join(root, 'build/Release')
const target = path.resolve('build/Release')

// No longer than the names that they replace, since they are written in their places.
const ownNames = [
  [/^libdnnl\.so\.\d+$/, 'libdit_nn.so'],
  [/^libgomp\.so\.1$/, 'libdit_mp.so'],
  [/^libOpenCL\.so\.1$/, 'libdit_cl.so'],
]
// Node itself needs these.
const ofTheSystem =
  /^(ld-linux-x86-64|libc|libdl|libgcc_s|libm|libpthread|librt|libstdc\+\+)\.so\.\d$/

const ownName = (name) => ownNames.find(([pattern]) => pattern.test(name))?.[1]

function fail(text) {
  console.error(`prebuild: ${text}`)
  process.exit(1)
}

/** The libraries that a file asks for, and its own name. */
function namesIn(file) {
  const output = execFileSync('objdump', ['-p', file], { encoding: 'utf8' })
  return [...output.matchAll(/^ +(NEEDED|SONAME) +(\S+)$/gm)].map(([, kind, name]) => ({
    kind,
    name,
  }))
}

/** The files that the dynamic loader finds for the libraries of a file, by name. */
function libraryFiles(file) {
  const output = execFileSync('ldd', [file], { encoding: 'utf8' })
  return new Map([...output.matchAll(/^\s*(\S+) => (\/\S+)/gm)].map(([, name, at]) => [name, at]))
}

/** The contents with one string of the table of names replaced by another that is no longer. */
function renamed(contents, from, to, file) {
  const at = contents.indexOf(`\0${from}\0`, 0, 'latin1')
  if (at < 0 || contents.indexOf(`\0${from}\0`, at + 1, 'latin1') >= 0) {
    fail(`${file} names ${from} elsewhere than in its table of names`)
  }
  if (to.length > from.length) fail(`${to} is longer than ${from}`)
  contents.fill(0, at + 1, at + 1 + from.length)
  contents.write(to, at + 1, 'latin1')
}

/** Puts a file into the package, its libraries renamed, and those libraries after it. */
function place(file, name, done = new Set()) {
  if (done.has(name)) return
  done.add(name)
  const contents = readFileSync(file)
  const files = libraryFiles(file)
  const names = namesIn(file)
  for (const { kind, name: old } of names) {
    const own = ownName(old)
    if (own !== undefined) renamed(contents, old, own, file)
    else if (kind === 'NEEDED' && !ofTheSystem.test(old)) {
      fail(`${file} needs ${old}, which is neither shipped nor part of every system`)
    }
  }
  const placed = path.join(target, name)
  writeFileSync(placed, contents, { mode: 0o755 })
  const left = namesIn(placed).filter((each) => ownName(each.name) !== undefined)
  if (left.length > 0) fail(`${placed} still names ${left.map((each) => each.name).join(', ')}`)

  for (const { kind, name: old } of names) {
    const own = ownName(old)
    if (kind !== 'NEEDED' || own === undefined) continue
    const library = files.get(old) ?? fail(`ldd does not find ${old}`)
    place(realpathSync(library), own, done)
  }
}

const script = path.join(root, 'scripts/build-native.mjs')
if (spawnSync(process.execPath, [script], { stdio: 'inherit' }).status !== 0) process.exit(1)
rmSync(target, { recursive: true, force: true })
mkdirSync(target, { recursive: true })
place(path.join(build, 'dit_native.node'), 'dit_native.node')
const cuda = path.join(build, 'libdit_cuda.so')
if (existsSync(cuda)) place(cuda, 'libdit_cuda.so')
