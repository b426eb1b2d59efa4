// The machine, as this process may use it: operating system, C library, the limits of a container.

import { readdirSync, readFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'

/** Something that is wrong, and what helps. */
export interface Problem {
  /** `'error'`: dit-native cannot be used. `'warning'`: something of it cannot, or slowly. */
  severity: 'error' | 'warning'
  problem: string
  advice: string
}

/** The operating system and Node. */
export interface SystemFacts {
  node: string
  platform: string
  arch: string
  /** Of the kernel. */
  release: string
  /** The name of the distribution, where it says it. */
  distribution: string | null
  libc: 'glibc' | 'musl or another' | null
  /** Of glibc, '2.36'. */
  glibc: string | null
}

/** What this process may use of the machine. */
export interface LimitFacts {
  /** Processors that this process may run on. */
  processors: number
  /** Processors' worth of time that the control group (a container's limit) gives; null: no limit. */
  cpuLimit: number | null
  /** Bytes of the machine, and of them not in use. */
  memory: number
  memoryAvailable: number
  /** Bytes that the control group allows; null: no limit. */
  memoryLimit: number | null
}

/** @internal */
export function systemFacts(): SystemFacts {
  const glibc = glibcVersion()
  const libc = process.platform !== 'linux' ? null : glibc === null ? 'musl or another' : 'glibc'
  const name = /^PRETTY_NAME="?([^"\n]*)/m.exec(text('/etc/os-release') ?? '')?.[1] ?? null
  return {
    node: process.versions.node,
    platform: process.platform,
    arch: process.arch,
    release: os.release(),
    distribution: name,
    libc,
    glibc,
  }
}

function glibcVersion(): string | null {
  // The report names the network's interfaces unless told not to (Node 22), which may take long.
  Object.assign(process.report, { excludeNetwork: true })
  const { header } = process.report.getReport() as {
    header?: { glibcVersionRuntime?: string }
  }
  return header?.glibcVersionRuntime ?? null
}

/** @internal */
export function limitFacts(root = '/'): LimitFacts {
  const available = /^MemAvailable:\s+(\d+) kB/m.exec(text(`${root}proc/meminfo`) ?? '')?.[1]
  return {
    processors: os.availableParallelism(),
    cpuLimit: smallest(controlGroups(root, 'cpu').map(cpuLimit)),
    memory: os.totalmem(),
    memoryAvailable: available === undefined ? os.freemem() : 1024 * Number(available),
    memoryLimit: smallest(controlGroups(root, 'memory').map(memoryLimit)),
  }
}

/**
 * How many threads find a processor: as many as this process may run on, and no more than its control
 * group gives time for. More would be stopped in turns, and those that are not would wait for them.
 *
 * @internal
 */
export function usableProcessors({ processors, cpuLimit } = limitFacts()): number {
  return Math.max(1, Math.min(processors, Math.floor(cpuLimit ?? processors)))
}

/**
 * The folders of this process's control group and of those around it: a limit may be set in any.
 * In a container the group's own name may be one that is seen outside only.
 */
function controlGroups(root: string, controller: string): string[] {
  const lines = (text(`${root}proc/self/cgroup`) ?? '').split('\n')
  const folders = new Set<string>()
  for (const line of lines) {
    const [, controllers, name] = /^\d+:([^:]*):(.*)$/.exec(line) ?? []
    if (name === undefined || controllers === undefined) continue
    const isUnified = controllers === ''
    if (!isUnified && !controllers.split(',').includes(controller)) continue
    const mount = path.join(root, 'sys/fs/cgroup', isUnified ? '' : controller)
    for (let at = name; ; at = path.posix.dirname(at)) {
      folders.add(path.join(mount, at))
      if (at === '/' || at === '.') break
    }
  }
  return [...folders]
}

function cpuLimit(folder: string): number | null {
  const [quota, period] = (text(path.join(folder, 'cpu.max')) ?? '').split(/\s+/).map(Number)
  if (quota && period) return quota / period
  const old = Number(text(path.join(folder, 'cpu.cfs_quota_us')) ?? Number.NaN)
  const oldPeriod = Number(text(path.join(folder, 'cpu.cfs_period_us')) ?? Number.NaN)
  return old > 0 && oldPeriod > 0 ? old / oldPeriod : null
}

function memoryLimit(folder: string): number | null {
  const files = ['memory.max', 'memory.limit_in_bytes']
  const limits = files.map((name) => Number(text(path.join(folder, name)) ?? Number.NaN))
  // "max", and version 1's largest multiple of a page, are none.
  return smallest(limits.map((limit) => (limit > 0 && limit < 2 ** 60 ? limit : null)))
}

function smallest(limits: readonly (number | null)[]): number | null {
  const set = limits.filter((limit): limit is number => limit !== null)
  return set.length === 0 ? null : Math.min(...set)
}

/** What the system shows of NVIDIA's hardware and driver, without asking the driver. */
export interface NvidiaFacts {
  /** GPUs on the PCI bus. */
  cards: number
  /** The kernel's part of the driver; null: not loaded, or hidden from this container. */
  driver: string | null
}

/** @internal */
export function nvidiaFacts(root = '/'): NvidiaFacts {
  const version = text(`${root}proc/driver/nvidia/version`) ?? ''
  const bus = path.join(root, 'sys/bus/pci/devices')
  const cards = list(bus).filter((name) => {
    const is = (file: string, pattern: RegExp) =>
      pattern.test(text(path.join(bus, name, file)) ?? '')
    return is('vendor', /^0x10de/) && is('class', /^0x03/) // NVIDIA; a display or 3D controller
  })
  return { cards: cards.length, driver: /\b\d{3}\.\d+(\.\d+)?\b/.exec(version)?.[0] ?? null }
}

/** A file of the kernel or the system; undefined where it is not there or not for us. */
function text(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
    return undefined
  }
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
    return []
  }
}
