// What dit-native finds on this machine, what is wrong with it, and what to do.

import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import type { DeviceInfo } from '../devices.js'
import { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { nativeFile } from '../native.js'
import { packageRoot } from '../root.cjs'
import { type BinaryFacts, examineBinary, type Probed } from './binary.js'
import { type CacheFacts, examineCache } from './cache.js'
import {
  type LimitFacts,
  limitFacts,
  type NvidiaFacts,
  nvidiaFacts,
  type Problem,
  type SystemFacts,
  systemFacts,
} from './machine.js'

/** A package that dit-native uses; null: not installed. */
export type Installed = string | null

/** What `dit doctor` finds; with `--json` it prints this. */
export interface Diagnosis {
  /** Whether a model can be loaded here and makes pictures. */
  usable: boolean
  problems: Problem[]
  package: { version: string; folder: string }
  system: SystemFacts
  limits: LimitFacts
  binary: BinaryFacts
  /** The processor and the GPUs; empty where the binary cannot be loaded. */
  devices: DeviceInfo[]
  nvidia: NvidiaFacts
  /** Version of the package that encodes and decodes pictures; null: it cannot be loaded. */
  sharp: Installed
  /** Versions of what `dit serve` needs, which is installed only by those who serve. */
  server: Record<string, Installed>
  cache: CacheFacts
  /** A picture of the demo model; null where the binary cannot be loaded. */
  selfTest: SelfTest | null
}

/** A few steps of the bundled model. */
export interface SelfTest {
  passed: boolean
  /** What it ran on. */
  device: string
  precision: string
  steps: number
  /** Of loading it, and of making one picture. */
  loadSeconds: number
  sampleSeconds: number
}

/** What is looked at instead of the package's own, by tests. @internal */
export interface Subject {
  binary?: string
  signal?: AbortSignal
}

/** What is used of package.json. */
interface Manifest {
  version: string
  engines: { node: string }
  peerDependencies?: Record<string, string>
}

const requireFile = createRequire(path.join(packageRoot, 'package.json'))

/**
 * Examines this machine. Rejects only with `signal.reason`: whatever else goes wrong is a problem that
 * it reports.
 *
 * @internal
 */
export async function diagnose({ binary, signal }: Subject = {}): Promise<Diagnosis> {
  const manifest = requireFile('./package.json') as Manifest
  const system = systemFacts()
  const limits = limitFacts()
  const nvidia = nvidiaFacts()
  const problems: Problem[] = [...nodeProblems(system, manifest), ...memoryProblems(limits)]
  const native = await findBinary(binary, manifest, system)
  problems.push(...native.problems)
  const devices: DeviceInfo[] = []
  let selfTest: SelfTest | null = null
  if (native.probed !== null) {
    devices.push(...(await DiT.devices()))
    problems.push(...gpuProblems(devices, nvidia, native.facts))
    const test = await runSelfTest(signal)
    selfTest = test.facts
    problems.push(...test.problems)
  }
  const sharp = await findSharp()
  problems.push(...sharp.problems)
  const cache = await examineCache()
  problems.push(...cache.problems)
  return {
    usable: problems.every(({ severity }) => severity !== 'error'),
    problems,
    package: { version: manifest.version, folder: packageRoot },
    system,
    limits,
    binary: native.facts,
    devices,
    nvidia,
    sharp: sharp.version,
    server: Object.fromEntries(
      Object.keys(manifest.peerDependencies ?? {}).map((name) => [name, installedVersion(name)]),
    ),
    cache: cache.facts,
    selfTest,
  }
}

/** @internal */
export function nodeProblems(
  { node }: Pick<SystemFacts, 'node'>,
  { engines }: Pick<Manifest, 'engines'>,
): Problem[] {
  const needed = engines.node.replace(/^>=/, '')
  const [major = 0, minor = 0] = node.split('.').map(Number)
  const [leastMajor = 0, leastMinor = 0] = needed.split('.').map(Number)
  if (major > leastMajor || (major === leastMajor && minor >= leastMinor)) return []
  return [
    {
      severity: 'error',
      problem: `Node ${node} is older than ${needed}`,
      advice: 'Install a newer one: https://nodejs.org',
    },
  ]
}

/** The demo model needs less, DiT-XL/2 in bf16 with its VAE about this much. */
const usualMemory = 2.5e9

/** @internal */
export function memoryProblems({ memory, memoryLimit }: LimitFacts): Problem[] {
  const bytes = Math.min(memory, memoryLimit ?? Number.POSITIVE_INFINITY)
  if (bytes >= usualMemory) return []
  return [
    {
      severity: 'warning',
      problem: `There are ${(bytes / 1e9).toFixed(1)} GB of memory; DiT-XL/2 with its VAE needs 2.5 GB`,
      advice: 'Smaller models fit. Give the container or the machine more for larger ones',
    },
  ]
}

interface Native {
  facts: BinaryFacts
  probed: Probed | null
  problems: Problem[]
}

async function findBinary(
  wanted: string | undefined,
  { version }: Manifest,
  system: SystemFacts,
): Promise<Native> {
  let file: string
  try {
    file = wanted ?? nativeFile()
  } catch (error) {
    if (!(error instanceof DiTError)) throw error
    const facts: BinaryFacts = {
      file: null,
      origin: null,
      version: null,
      loads: false,
      cudaLibrary: null,
    }
    // "Problem. Advice", of native.ts.
    const [problem = '', ...rest] = error.message.split(/(?<=\.) /)
    const advice = rest.join(' ')
    return { facts, probed: null, problems: [{ severity: 'error', problem, advice }] }
  }
  return examineBinary(file, { version, root: packageRoot }, system)
}

/** @internal */
export function gpuProblems(
  devices: readonly DeviceInfo[],
  { cards, driver }: NvidiaFacts,
  { cudaLibrary }: Pick<BinaryFacts, 'cudaLibrary'>,
): Problem[] {
  const problems: Problem[] = []
  const warn = (problem: string, advice: string) => {
    problems.push({ severity: 'warning', problem, advice })
  }
  for (const device of devices) {
    // That there is no GPU is no problem where there is no sign of one.
    if (device.available || (cards === 0 && driver === null && device.device === 'cuda')) continue
    const problem = `${device.device === 'cuda' ? 'The GPU' : device.device} cannot be used: ${device.reason}`
    if (cudaLibrary === null) {
      warn(problem, 'Install a prebuilt package, or build it where the CUDA toolkit (nvcc) is')
    } else if (driver === null) {
      warn(problem, "Install NVIDIA's driver, 580 or newer, and load it: `nvidia-smi` must find it")
    } else if (/no NVIDIA driver was found/.test(device.reason)) {
      warn(
        problem,
        'The driver runs, but this container does not see it: start it with `docker run --gpus all`, ' +
          "with NVIDIA's container toolkit installed",
      )
    } else warn(problem, 'Update the driver; `nvidia-smi` tells what it says of the device')
  }
  return problems
}

async function findSharp(): Promise<{ version: Installed; problems: Problem[] }> {
  try {
    const { default: sharp } = await import('sharp')
    return { version: sharp.versions.sharp ?? 'unknown', problems: [] }
  } catch (error) {
    return {
      version: null,
      problems: [
        {
          severity: 'error',
          problem: `Pictures cannot be written or read: sharp cannot be loaded (${firstLine(error)})`,
          advice: 'npm install --include=optional sharp',
        },
      ],
    }
  }
}

/** Without loading it: the first that Node would look at. */
function installedVersion(name: string): Installed {
  for (const folder of requireFile.resolve.paths(name) ?? []) {
    const file = path.join(folder, name, 'package.json')
    if (existsSync(file)) return (JSON.parse(readFileSync(file, 'utf8')) as Manifest).version
  }
  return null
}

const selfTestSteps = 4

async function runSelfTest(
  signal: AbortSignal | undefined,
): Promise<{ facts: SelfTest; problems: Problem[] }> {
  const facts: SelfTest = {
    passed: false,
    device: '',
    precision: '',
    steps: selfTestSteps,
    loadSeconds: 0,
    sampleSeconds: 0,
  }
  let dit: DiT | undefined
  try {
    let begin = performance.now()
    dit = await DiT.load('demo', signal ? { signal } : {})
    facts.device = dit.device
    facts.precision = dit.precision
    facts.loadSeconds = (performance.now() - begin) / 1000
    begin = performance.now()
    const [image] = await dit.sample(0, {
      steps: selfTestSteps,
      seed: 0,
      ...(signal && { signal }),
    })
    facts.sampleSeconds = (performance.now() - begin) / 1000
    const values = new Set(image?.data)
    if (values.size < 2) throw new Error('the picture has one colour only')
    return { facts: { ...facts, passed: true }, problems: [] }
  } catch (error) {
    signal?.throwIfAborted()
    const where = facts.device === '' ? '' : ` on ${facts.device}`
    const problem = `The demo model made no picture${where}: ${firstLine(error)}`
    const advice =
      facts.device.startsWith('cuda') || facts.device === ''
        ? "Try device: 'cpu' (dit: --device cpu); `dit sample --debug` tells more"
        : 'Install the package anew; `dit sample --debug` tells more'
    return { facts, problems: [{ severity: 'error', problem, advice }] }
  } finally {
    await dit?.close()
  }
}

function firstLine(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error)
  return message.split('\n', 1)[0] as string
}
