// The decoding threads.

import path from 'node:path'
import { Piscina } from 'piscina'
import { usableProcessors } from '../doctor/machine.js'
import { DiTError, invalidOption } from '../errors.js'
import { modulesFolder } from '../root.cjs'
import type { Decoded, DecodeTask, Listing } from './worker.js'

const maxDefaultWorkers = 8

/** Threads that list folders and decode pictures; they start with the first task. */
export class Decoder {
  readonly workers: number
  #pool: Piscina | undefined
  #failure: { error: Error; ended: Promise<void> } | undefined

  /** `workers`: 0 or nothing is the default. Throws ERR_DIT_OPTION for what is no number of threads. */
  constructor(workers = 0) {
    if (!Number.isInteger(workers) || workers < 0 || workers > 256) {
      throw invalidOption('workers', 'an integer from 0 to 256', workers)
    }
    this.workers = workers || Math.min(usableProcessors(), maxDefaultWorkers)
  }

  decode(task: DecodeTask): Promise<Decoded> {
    return this.#run('decode', task)
  }

  /** Rejects with ERR_DIT_FILE when a folder cannot be read. */
  async list(folder: string): Promise<Listing> {
    const listing: Listing | string = await this.#run('list', folder)
    if (typeof listing === 'string') throw new DiTError('ERR_DIT_FILE', listing)
    return listing
  }

  /** Waits for what is under way, then ends the threads. */
  async close(): Promise<void> {
    await (this.#failure?.ended ?? this.#pool?.close())
  }

  async #run<T>(name: 'decode' | 'list', task: unknown): Promise<T> {
    this.#pool ??= this.#start()
    try {
      return await this.#pool.run(task, { name })
    } catch (cause) {
      const error = this.#failure?.error ?? (cause as Error)
      const message = `A decoding thread failed: ${error.message}`
      throw new DiTError('ERR_DIT_PLATFORM', message, { cause: error })
    }
  }

  #start(): Piscina {
    const pool = new Piscina({
      // Without its end, which is .ts in the sources and .js in the build: `require` finds either.
      filename: path.join(modulesFolder, 'data', 'worker'),
      name: 'decode', // with a name that it finds, the pool keeps to `require`, which tsx serves too
      minThreads: this.workers,
      maxThreads: this.workers,
      recordTiming: false,
      // Threads refuse this flag: it is of a program given as text.
      execArgv: process.execArgv.filter((flag) => !flag.startsWith('--input-type')),
    })
    // A thread that cannot start. The pool would try for ever.
    pool.on('error', (error: Error) => {
      this.#failure ??= { error, ended: pool.destroy() }
    })
    return pool
  }
}
