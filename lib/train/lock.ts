// One training a folder: a symbolic link that says who writes there. It is made whole or not at all, and
// only where there is none; nothing need exist where it points.

import { mkdir, readFile, readlink, rm, stat, symlink } from 'node:fs/promises'
import { hostname } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { DiTError, fileError } from '../errors.js'

/** A process: its number alone may be another's after a while. */
interface Holder {
  pid: number
  /** When it began, in the kernel's ticks since the machine's start. */
  started: string
  host: string
}

/** How long a process may take to remove a file; then it has ended in the middle. */
const guardMs = 10_000

/** The right to write to a folder. @internal */
export class FolderLock {
  readonly #file: string
  readonly #text: string

  private constructor(file: string, text: string) {
    this.#file = file
    this.#text = text
  }

  /**
   * Rejects with ERR_DIT_BUSY while another training has it, of this process or another. What a process
   * that ended without a word left behind is taken over.
   */
  static async take(folder: string): Promise<FolderLock> {
    const file = path.join(folder, 'lock')
    const started = await startOf(process.pid)
    const text = format({ pid: process.pid, started: started ?? '0', host: hostname() })
    for (;;) {
      if (await tried(() => symlink(text, file), 'EEXIST')) return new FolderLock(file, text)
      const other = await read(file)
      if (other === undefined) continue // it has just been given back
      const holder = parse(other)
      if (holder && (await mayRun(holder))) throw busy(folder, file, holder)
      await removeStale(file, other)
    }
  }

  async release(): Promise<void> {
    if ((await read(this.#file)) === this.#text) await rm(this.#file, { force: true })
  }
}

function format({ pid, started, host }: Holder): string {
  return `process ${pid} started ${started} on ${host}`
}

function parse(text: string): Holder | undefined {
  const [, pid, started, host] = /^process (\d+) started (\d+) on (.*)$/.exec(text) ?? []
  if (pid === undefined || started === undefined || host === undefined) return undefined
  return { pid: Number(pid), started, host }
}

/** Of other machines nothing is known. */
async function mayRun({ pid, started, host }: Holder): Promise<boolean> {
  return host !== hostname() || (await startOf(pid)) === started
}

/** When a process of this machine began; undefined when it has ended. */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1')
    // After the name, in brackets: the state, a letter, is field 3 of proc(5), the start field 22.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return fields[0] === 'Z' ? undefined : fields[19]
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ESRCH') return undefined
    throw cause
  }
}

function busy(folder: string, file: string, { pid, host }: Holder): DiTError {
  const isHere = host === hostname()
  const isOwn = isHere && pid === process.pid
  const who = isOwn ? 'this process' : `process ${pid}${isHere ? '' : ` on ${host}`}`
  const advice = isHere ? '' : `; if it does not run any more, remove ${file}`
  return new DiTError(
    'ERR_DIT_BUSY',
    `${path.resolve(folder)} is in use: ${who} trains there. Wait until it ends, or give another out` +
      advice,
  )
}

/**
 * Removes a lock that says `stale`, and no other: who makes the folder beside it is alone, so what was
 * read is what is removed.
 */
async function removeStale(file: string, stale: string): Promise<void> {
  const guard = `${file}.stale`
  if (await tried(() => mkdir(guard), 'EEXIST')) {
    try {
      if ((await read(file)) === stale) await rm(file)
    } finally {
      await rm(guard, { recursive: true, force: true })
    }
    return
  }
  const made = await stat(guard).catch(() => undefined) // gone by now
  if (made && Date.now() - made.mtimeMs > guardMs) await rm(guard, { recursive: true, force: true })
  else await sleep(10)
}

/** What the lock says; undefined without one. */
async function read(file: string): Promise<string | undefined> {
  try {
    return await readlink(file)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw fileError(file, 'read', cause)
  }
}

/** Whether it succeeded; false after the error expected. */
async function tried(work: () => Promise<void>, expected: 'EEXIST' | 'ENOENT'): Promise<boolean> {
  try {
    await work()
    return true
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === expected) return false
    throw cause
  }
}
