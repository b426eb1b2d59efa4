import { setImmediate } from 'node:timers/promises'
import type {
  CallRequest,
  CallStats,
  JobEvent,
  Model,
  ModelInfo,
  SaveRequest,
} from '../bindings.js'
import { following, onAbort } from './aborts.js'
import { DiTError, type DiTErrorCode, ditErrorCodes } from './errors.js'
import { native } from './native.js'
import { isError } from './realms.js'

/** @internal */
export type DoneEvent = Extract<JobEvent, { kind: 'done' }>
/** @internal */
export type RunningEvent = Extract<JobEvent, { kind: 'progress' | 'preview' }>

/** Asks the native model for a job, whose number it returns. @internal */
export type Start = (model: Model) => number

interface Job {
  /** Keeps the model from being collected while a job is under way. */
  readonly engine: Engine
  readonly onEvent?: (event: RunningEvent) => void
  readonly settle: (error: unknown, done?: DoneEvent) => void
}

/** One of the jobs that a call is cut into. @internal */
export interface Part<T> {
  readonly start: Start
  readonly finish: (done: DoneEvent) => T
  readonly onEvent?: ((event: RunningEvent) => void) | undefined
}

/** Enough that the model always has one to do while others are copied. @internal */
export const jobsAtOnce = 8

interface RunOptions {
  signal?: AbortSignal | undefined
  onEvent?: (event: RunningEvent) => void
}

/**
 * A native model and its thread, its events turned into promises.
 *
 * @internal
 */
export class Engine {
  readonly #model: Model
  readonly #jobs = new Map<number, Job>()
  #closed: Promise<void> | undefined

  constructor() {
    const { Model } = native()
    // The native side holds the listener, so it must not hold the engine: a model that nobody
    // refers to any more can then be collected, which frees its memory.
    const jobs = this.#jobs
    try {
      this.#model = new Model((event) => dispatch(jobs, event))
    } catch (error) {
      throw nativeError(error) // no thread to be had
    }
  }

  info(): ModelInfo {
    if (this.#closed) throw closedError()
    return this.#ask((model) => model.info())
  }

  stats(): CallStats {
    if (this.#closed) throw closedError()
    return this.#ask((model) => model.stats())
  }

  /**
   * Lets a call in and runs `work` with its number; when that ends, so has the call. Rejects with
   * ERR_DIT_BUSY or ERR_DIT_DEADLINE when it is refused, at once; with `signal.reason` when it is
   * aborted already, which nobody counts.
   */
  async admitted<T>(
    request: CallRequest,
    signal: AbortSignal | undefined,
    work: (call: number) => Promise<T>,
  ): Promise<T> {
    signal?.throwIfAborted()
    if (this.#closed) throw closedError()
    const call = this.#ask((model) => model.admit(request))
    try {
      return await work(call)
    } finally {
      this.#model.leave(call)
    }
  }

  /**
   * Runs one job. Rejects with the job's DiTError, with ERR_DIT_CLOSED, with `signal.reason`, or
   * with what `onEvent` throws; in the last two cases the job is cancelled.
   */
  async run(start: Start, { signal, onEvent }: RunOptions = {}): Promise<DoneEvent> {
    signal?.throwIfAborted()
    if (this.#closed) throw closedError()
    const id = this.#ask(start)
    return new Promise<DoneEvent>((resolve, reject) => {
      const unfollow =
        signal &&
        onAbort(signal, () => {
          settle(signal.reason)
          this.#model.cancel(id)
        })
      const settle = (error: unknown, done?: DoneEvent) => {
        unfollow?.()
        this.#jobs.delete(id)
        if (done) resolve(done)
        else reject(error)
      }
      this.#jobs.set(id, {
        engine: this,
        settle,
        ...(onEvent && {
          onEvent: (event) => {
            try {
              onEvent(event)
            } catch (error) {
              settle(error)
              this.#model.cancel(id)
            }
          },
        }),
      })
    })
  }

  /**
   * Runs the jobs of one call, a few at a time; when one fails, the others are cancelled.
   *
   * A job's data is copied when it starts and when it ends, so the first ones start one turn of the
   * event loop after the other, and `finish` is called for each as it ends.
   */
  async runAll<T>(
    parts: readonly Part<T>[],
    signal: AbortSignal | undefined,
    atOnce = jobsAtOnce,
  ): Promise<T[]> {
    const { controller, unfollow } = following(signal)
    const results: T[] = []
    const waiting = [...parts.entries()]
    const runNext = async (turns: number) => {
      for (let turn = 0; turn < turns; turn++) await setImmediate()
      for (let next = waiting.shift(); next; next = waiting.shift()) {
        const [i, { start, onEvent, finish }] = next
        const options = { signal: controller.signal, ...(onEvent && { onEvent }) }
        results[i] = finish(await this.run(start, options))
      }
    }
    try {
      await Promise.all(
        Array.from({ length: Math.min(atOnce, parts.length) }, (_, i) => runNext(i)),
      )
    } catch (error) {
      controller.abort(error)
      throw error
    } finally {
      unfollow()
    }
    return results
  }

  async save(request: SaveRequest): Promise<void> {
    await this.run((model) => model.save(request))
  }

  /** Ends everything that is under way and frees the memory. */
  close(): Promise<void> {
    this.#closed ??= this.#end()
    return this.#closed
  }

  async #end(): Promise<void> {
    const id = this.#ask((model) => model.close())
    await new Promise<void>((resolve, reject) => {
      this.#jobs.set(id, {
        engine: this,
        settle: (error, done) => {
          this.#jobs.delete(id)
          if (done) resolve()
          else reject(error)
        },
      })
    })
  }

  #ask<T>(question: (model: Model) => T): T {
    try {
      return question(this.#model)
    } catch (error) {
      throw nativeError(error)
    }
  }
}

function dispatch(jobs: Map<number, Job>, event: JobEvent): void {
  const job = jobs.get(event.job)
  if (job === undefined) return // aborted: its promise is settled already
  switch (event.kind) {
    case 'done':
      job.settle(undefined, event)
      break
    case 'failed':
      job.settle(nativeError(event))
      break
    default:
      job.onEvent?.(event)
  }
}

function closedError(): DiTError {
  return new DiTError('ERR_DIT_CLOSED', 'The model was closed; load it again')
}

/** What the native part threw or reported, as a DiTError. @internal */
export function nativeError(error: unknown): DiTError {
  const { code, message, retryAfter } = error as {
    code?: string
    message?: string
    retryAfter?: number
  }
  const known = ditErrorCodes.includes(code as DiTErrorCode)
  return new DiTError(
    known ? (code as DiTErrorCode) : 'ERR_DIT_INTERNAL',
    message ?? String(error),
    { ...(isError(error) && { cause: error }), retryAfter },
  )
}
