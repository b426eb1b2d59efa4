// Requests under way, and the results of those that nobody waited for.

import { randomUUID } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { HttpError } from './errors.js'
import type { Settings } from './options.js'

/** What can be told of a job, as server-sent events. @internal */
export type JobEvent =
  | { event: 'queued'; data: { id: string; images: number } }
  | { event: 'progress'; data: { step: number; steps: number } }
  | { event: 'preview'; data: { index: number; step: number; steps: number; image: string } }
  | { event: 'done'; data: Record<string, unknown> }
  | { event: 'error'; data: Record<string, unknown> }

/** @internal */
export type Listener = (event: JobEvent) => void

/** What a request that has ended takes beside its images; estimated. */
const bytesAround = 4096

/** One request for images. @internal */
export class Job {
  readonly id = randomUUID()
  /** Whether it can be asked for by its id. */
  published = false
  readonly #abort = new AbortController()
  readonly #listeners = new Set<Listener>()
  readonly #previews = new Map<number, JobEvent>()
  #progress: JobEvent | undefined
  #end: JobEvent | undefined

  constructor(
    readonly images: number,
    /** Who asked, where there is more than one to tell apart: others must not see or cancel it. */
    readonly owner: string,
  ) {}

  get signal(): AbortSignal {
    return this.#abort.signal
  }

  get ended(): boolean {
    return this.#end !== undefined
  }

  get listeners(): number {
    return this.#listeners.size
  }

  /** Ends the work; nothing happens when it is done. */
  cancel(reason: Error): void {
    this.#abort.abort(reason)
  }

  emit(event: JobEvent): void {
    if (this.#end) return
    if (event.event === 'progress') this.#progress = event
    if (event.event === 'preview') this.#previews.set(event.data.index, event)
    if (event.event === 'done' || event.event === 'error') {
      this.#end = event
      this.#previews.clear()
    }
    for (const listener of this.#listeners) listener(event)
  }

  /** Tells what was so far, then what happens. Returns the way to stop listening. */
  listen(listener: Listener): () => void {
    listener({ event: 'queued', data: { id: this.id, images: this.images } })
    if (this.#progress) listener(this.#progress)
    for (const preview of this.#previews.values()) listener(preview)
    if (this.#end) listener(this.#end)
    else this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
}

/** What is answered while the server is being stopped. @internal */
export function drained(): HttpError {
  return new HttpError(503, 'ERR_DIT_DRAINING', 'The server is being stopped', { retryAfter: 5 })
}

/** All jobs of a server. @internal */
export class Jobs {
  readonly #running = new Set<Job>()
  /** Those that can be asked for by their ids. */
  readonly #known = new Map<string, Job>()
  readonly #kept: LRUCache<string, Job>
  readonly #waitingForNone: (() => void)[] = []
  #images = 0
  #draining = false

  constructor(limits: Settings['limits']) {
    this.#kept = new LRUCache<string, Job>({
      maxSize: limits.keepBytes,
      maxEntrySize: limits.keepBytes,
      ttl: limits.keepSeconds * 1000,
      ttlAutopurge: false,
    })
  }

  /** Images of all requests under way. */
  get images(): number {
    return this.#images
  }

  get draining(): boolean {
    return this.#draining
  }

  open(images: number, owner: string): Job {
    const job = new Job(images, owner)
    this.#running.add(job)
    this.#images += images
    return job
  }

  /** From now on it can be asked for by its id. */
  publish(job: Job): void {
    job.published = true
    this.#known.set(job.id, job)
  }

  /** It has ended: with `bytes` of images that are kept for a while, if it can be asked for. */
  close(job: Job, bytes: number): void {
    if (!this.#running.delete(job)) return
    this.#images -= job.images
    if (this.#known.delete(job.id)) this.#kept.set(job.id, job, { size: bytes + bytesAround })
    if (this.#running.size === 0) for (const done of this.#waitingForNone.splice(0)) done()
  }

  /** Throws 404. */
  get(id: string, owner: string): Job {
    const job = this.#known.get(id) ?? this.#kept.get(id)
    if (job !== undefined && job.owner === owner) return job
    throw new HttpError(404, 'not_found', 'There is no such request, or no longer')
  }

  /** Takes nothing new, waits for what is under way, and after `seconds` cancels it. */
  async drain(seconds: number): Promise<void> {
    this.#draining = true
    const none = this.#none()
    const timer = setTimeout(() => {
      for (const job of this.#running) job.cancel(drained())
    }, seconds * 1000)
    await none
    clearTimeout(timer)
    this.#kept.clear()
  }

  #none(): Promise<void> {
    if (this.#running.size === 0) return Promise.resolve()
    return new Promise((resolve) => {
      this.#waitingForNone.push(resolve)
    })
  }
}
