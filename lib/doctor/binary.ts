// Whether the native part can be loaded, and if not, what it lacks.

import { execFile } from 'node:child_process'
import { closeSync, existsSync, openSync, readSync } from 'node:fs'
import path from 'node:path'
import type { DeviceInfo as NativeDevice } from '../../bindings.js'
import { runInChild } from '../child.js'
import { buildAdvice, whyRefused } from '../platform.js'
import type { Problem, SystemFacts } from './machine.js'

/** The native part. */
export interface BinaryFacts {
  /** Null: there is none for this machine. */
  file: string | null
  origin: 'prebuilt' | 'built here' | null
  /** Of dit-native, that it was built from. */
  version: string | null
  loads: boolean
  /** The kernels for GPUs, a library beside it; null: not there. */
  cudaLibrary: string | null
}

/** What a binary that can be loaded says, asked in another process. @internal */
export interface Probed {
  version: string
  cpu: NativeDevice
  cudaObstacle: string
}

/** Seconds; far more than a slow disk needs. */
const timeLimit = 60

const program = `
let found
try {
  const binding = require(process.argv[1])
  const { version } = binding
  found = { version, cpu: binding.cpuDevice(), cudaObstacle: binding.cudaObstacle() }
} catch (error) {
  found = { error: String(error.message) }
}
process.stdout.write('\\n' + JSON.stringify(found))
`

/** @internal */
export async function examineBinary(
  file: string,
  expected: { version: string; root: string },
  system: SystemFacts,
): Promise<{ facts: BinaryFacts; probed: Probed | null; problems: Problem[] }> {
  const library = path.join(path.dirname(file), 'libdit_cuda.so')
  const facts: BinaryFacts = {
    file,
    origin: file.split(path.sep).includes('prebuilds') ? 'prebuilt' : 'built here',
    version: null,
    loads: false,
    cudaLibrary: existsSync(library) ? library : null,
  }
  const result = await runInChild(program, file, timeLimit)
  if (result.outcome !== 'done') {
    const how = {
      late: `did not finish loading within ${timeLimit} s`,
      killed: `ended the process that loaded it, with ${result.outcome === 'killed' && result.by}`,
      failed: `could not be tried: ${result.outcome === 'failed' && result.reason}`,
    }
    const advice = `Install the package anew. If that does not help, ${buildAdvice(expected.root)}`
    const problem = `The binary ${file} ${how[result.outcome]}`
    return { facts, probed: null, problems: [{ severity: 'error', problem, advice }] }
  }
  const value = result.value as Probed | { error: string }
  if ('error' in value) {
    const problems = await explain(file, value.error, expected.root, system)
    return { facts, probed: null, problems }
  }
  facts.version = value.version
  if (value.version !== expected.version) {
    const problem = `The binary is of version ${value.version}, the package of ${expected.version}`
    const advice = `Install the package anew, or ${buildAdvice(expected.root)}`
    return { facts, probed: null, problems: [{ severity: 'error', problem, advice }] }
  }
  facts.loads = true
  return { facts, probed: value, problems: [] }
}

/** Packages of Debian and Ubuntu, and of Fedora and its like. */
const packages: readonly (readonly [RegExp, debian: string, fedora: string])[] = [
  [/^libdnnl\.so/, 'libdnnl2 (Debian 13: libdnnl3)', 'onednn'],
  [/^libgomp\.so/, 'libgomp1', 'libgomp'],
  [/^libstdc\+\+\.so/, 'libstdc++6', 'libstdc++'],
  [/^libgcc_s\.so/, 'libgcc-s1', 'libgcc'],
]

/** Why the dynamic loader refused a file. */
async function explain(
  file: string,
  reason: string,
  root: string,
  system: SystemFacts,
): Promise<Problem[]> {
  const { platform, arch } = system
  const error = (problem: string, advice: string): Problem[] => [
    { severity: 'error', problem, advice },
  ]
  const machine = machineOf(file)
  if (machine === undefined) {
    return error(
      `The binary ${file} is damaged: it is no ELF file (${reason})`,
      'Install the package anew: npm install dit-native',
    )
  }
  if (platform !== 'linux' || machine !== arch) {
    return error(
      `The binary ${file} is for linux-${machine}, this is ${platform}-${arch}`,
      'Was node_modules copied from another machine? Install the package on this one; where there is ' +
        `no binary for it, ${buildAdvice(root)}`,
    )
  }
  const refusal = whyRefused(file, reason, system, root)
  if (refusal !== undefined) return error(refusal.problem, refusal.advice)
  const missing = await missingLibraries(file, reason)
  if (missing.length > 0) {
    return missing.flatMap((name) => {
      const known = packages.find(([pattern]) => pattern.test(name))
      const advice = name.startsWith('libdit_')
        ? 'It came with the package: install that anew'
        : known === undefined
          ? `Install the package of this system that has ${name}, or ${buildAdvice(root)}`
          : `Debian, Ubuntu: apt-get install ${known[1]}. Fedora, RHEL: dnf install ${known[2]}`
      return error(`The binary ${file} needs the library ${name}, which is not there`, advice)
    })
  }
  return error(
    `The binary ${file} cannot be loaded: ${reason}`,
    `Install the package anew, or ${buildAdvice(root)}`,
  )
}

/** The processor an ELF file is for, as `process.arch` calls it; undefined: it is none. */
function machineOf(file: string): string | undefined {
  const head = Buffer.alloc(20)
  const descriptor = openSync(file, 'r')
  try {
    readSync(descriptor, head, 0, head.length, 0)
  } finally {
    closeSync(descriptor)
  }
  if (head.toString('latin1', 0, 4) !== '\x7fELF') return undefined
  const machine = head.readUInt16LE(18) // the ELF header's e_machine
  const names: Record<number, string> = { 3: 'ia32', 40: 'arm', 62: 'x64', 183: 'arm64' }
  return names[machine] ?? `machine ${machine}`
}

/** All that ldd does not find; without ldd, the first, which the loader named. */
async function missingLibraries(file: string, reason: string): Promise<string[]> {
  const listed = await new Promise<string>((resolve) => {
    execFile('ldd', [file], { timeout: 10_000 }, (_, stdout) => resolve(stdout))
  })
  const missing = [...listed.matchAll(/^\s*(\S+) => not found/gm)].map(
    (match) => match[1] as string,
  )
  if (missing.length > 0) return [...new Set(missing)]
  const named = /(\S+): cannot open shared object file/.exec(reason)?.[1]
  return named === undefined || named === file ? [] : [named]
}
