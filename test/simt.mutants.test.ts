// timeout: 1800s
// Proves that the tests of the CUDA kernels see faults: each mutant of test/simt/mutants.json is one
// wrong change to a kernel, as people make them, and has to make a native case fail in the emulator.
//
// A mutant names the file that is changed, the one place in it, and the unit that is compiled anew (the
// file itself, or a source that includes it). It is linked with the other objects of the build.
import { execFile } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageRoot } from '../lib/root.cjs'

interface Mutant {
  /** What was done to the kernel. */
  name: string
  /** In native/cuda. */
  file: string
  /** Compiled anew; default: the file. */
  unit?: string
  find: string
  replace: string
  /** Of dit_native_test. */
  cases: string[]
  arch: 'sm_80' | 'sm_90a'
}

const run = promisify(execFile)
const build = realpathSync(path.join(packageRoot, 'build'))
const folder = path.join(build, 'mutants')
const mutants: Mutant[] = JSON.parse(
  readFileSync(path.join(packageRoot, 'test/simt/mutants.json'), 'utf8'),
)

interface Compilation {
  file: string
  command: string[]
  /** What the build makes of it. */
  object: string
}

/** How the build compiles the emulated library. */
function compilations(): Compilation[] {
  const all: { file: string; command: string; directory: string }[] = JSON.parse(
    readFileSync(path.join(build, 'compile_commands.json'), 'utf8'),
  )
  return all
    .filter(({ command }) => command.includes('dit_cuda_emulated.dir'))
    .map(({ file, command, directory }) => {
      const words = command.split(' ').map((word) => word.replaceAll('\\"', '"'))
      const object = words[words.indexOf('-o') + 1] as string
      return { file, command: words, object: path.resolve(directory, object) }
    })
}

/** Builds the emulated library with `text` in place of a file, beside a copy of the test program. */
async function buildWith(file: string, unit: string, text: string): Promise<string> {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(path.join(folder, 'include/cuda'), { recursive: true })
  const changed = path.join(folder, 'include/cuda', file)
  writeFileSync(changed, text)
  const source = path.join(packageRoot, 'native/cuda', unit)
  const all = compilations()
  const own = all.find(({ file }) => file === source)
  assert.ok(own, `the build compiles ${unit} for the emulator`)
  const { command, object } = own as Compilation
  const ownObject = path.join(folder, 'unit.o')
  const words = command
    .map((word) => (word === source && file === unit ? changed : word))
    .filter((word, i) => word !== '-o' && command[i - 1] !== '-o')
    .filter(
      (word, i, all) =>
        !['-MF', '-MT'].includes(word) && !['-MF', '-MT'].includes(all[i - 1] ?? ''),
    )
    .filter((word) => word !== '-MD')
  const [compiler = 'c++', ...flags] = words[0]?.endsWith('ccache') ? words.slice(1) : words
  await run(compiler, [`-I${path.join(folder, 'include')}`, ...flags, '-o', ownObject])
  await run(compiler, [
    '-shared',
    '-o',
    path.join(folder, 'libdit_cuda_emulated.so'),
    ownObject,
    ...all.map((each) => each.object).filter((other) => other !== object),
  ])
  const program = path.join(folder, 'dit_native_test')
  copyFileSync(path.join(build, 'Release/dit_native_test'), program)
  return program
}

/** Whether all cases pass; the program's output where not. */
async function passes(program: string, { cases, arch }: Mutant): Promise<string | true> {
  try {
    await run(program, ['--device', 'cuda:emulated', ...cases], {
      env: { ...process.env, DIT_CUDA_ARCH: arch },
      timeout: 120_000,
      maxBuffer: 1 << 26,
    })
    return true
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string; stderr: string }
    return `${stdout}${stderr}`
  }
}

for (const mutant of mutants) {
  test(`${mutant.file}: ${mutant.name}`, async () => {
    const text = readFileSync(path.join(packageRoot, 'native/cuda', mutant.file), 'utf8')
    assert.is(text.split(mutant.find).length, 2, `"${mutant.find}" stands in ${mutant.file} once`)
    const changed = text.replace(mutant.find, () => mutant.replace)
    const program = await buildWith(mutant.file, mutant.unit ?? mutant.file, changed)
    const outcome = await passes(program, mutant)
    assert.is.not(outcome, true, 'a case fails')
  })
}

// The same cases pass with the sources as they are, so that it was the change that failed them.
test('without a change', async () => {
  const first = mutants[0] as Mutant
  const text = readFileSync(path.join(packageRoot, 'native/cuda', first.file), 'utf8')
  const program = await buildWith(first.file, first.unit ?? first.file, text)
  const all = new Map(mutants.map((mutant) => [`${mutant.arch} ${mutant.cases}`, mutant]))
  for (const mutant of all.values()) assert.is(await passes(program, mutant), true, mutant.name)
})

test.after(() => rmSync(folder, { recursive: true, force: true }))

test.run()
