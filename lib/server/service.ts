// Everything that the routes share.

import type { FastifyReply, FastifyRequest } from 'fastify'
import type { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { Tokens } from './access.js'
import { ImageCache } from './cache.js'
import { answerOf } from './errors.js'
import { Abandoned, type Job, Jobs } from './jobs.js'
import { type Made, make, type Order } from './making.js'
import { Metrics } from './metrics.js'
import { Models } from './models.js'
import type { Settings } from './options.js'

/** The models, the requests under way, and what is remembered and counted of them. @internal */
export class Service {
  readonly models = new Models()
  readonly tokens: Tokens
  readonly jobs: Jobs
  readonly cache: ImageCache
  readonly metrics: Metrics

  /** Where the routes are. */
  prefix = ''
  /** What routes that make images are registered with. */
  rateLimited: { config?: { rateLimit: object } } = {}

  constructor(readonly settings: Settings) {
    this.tokens = new Tokens(settings.tokens)
    this.jobs = new Jobs(settings.limits)
    this.cache = new ImageCache(settings.cacheBytes)
    this.metrics = new Metrics(this.models, this.jobs, this.cache)
  }

  addModel(id: string, dit: DiT): void {
    this.models.add(id, dit)
  }

  /** Who asks, for fair shares. */
  callerOf(request: FastifyRequest, user?: string): string {
    const { caller } = this.settings
    if (caller) return caller(request)
    const owner = this.tokens.ownerOf(request) || request.ip
    return user === undefined ? owner : `${owner} ${user}`
  }

  /** Why new requests cannot be answered; undefined when they can. */
  problem(): string | undefined {
    return this.jobs.draining ? 'the server is being stopped' : this.models.problem()
  }

  /** Lets a request in. Throws 429 and 503. */
  open(order: Order, request: FastifyRequest): Job {
    return this.jobs.open(order.labels.length, this.tokens.ownerOf(request))
  }

  /** Makes a job's images. `describe` says what its listeners are told in the end. */
  async run(
    order: Order,
    job: Job,
    describe: (made: Made) => Record<string, unknown>,
    onAdmitted?: () => void,
  ): Promise<Made> {
    let bytes = 0
    try {
      const made = await make(order, job, this.cache, onAdmitted)
      const { id } = order.served
      this.metrics.images.inc({ model: id, from: 'cache' }, made.cached)
      this.metrics.images.inc({ model: id, from: 'model' }, made.images.length - made.cached)
      // In base64, which is what listeners are sent.
      bytes = made.images.reduce((sum, image) => sum + Math.ceil(image.bytes.length / 3) * 4, 0)
      if (job.published) job.emit({ event: 'done', data: describe(made) })
      return made
    } catch (error) {
      if (error instanceof DiTError && error.code === 'ERR_DIT_DEVICE_LOST') {
        this.models.lose(order.served.id)
      }
      job.emit({ event: 'error', data: describeError(error) })
      throw error
    } finally {
      this.jobs.close(job, bytes)
    }
  }

  /** Takes nothing new, and waits for what is under way. */
  drain(): Promise<void> {
    return this.jobs.drain(this.settings.graceSeconds)
  }
}

function describeError(error: unknown): Record<string, unknown> {
  if (error instanceof Abandoned) return { code: 'cancelled', message: 'The request was cancelled' }
  return { ...answerOf(error).body.error }
}

/** Cancels a job when whoever asked for it goes away before the answer. @internal */
export function cancelOnDisconnect(job: Job, reply: FastifyReply): void {
  const { raw } = reply
  const onClose = () => {
    if (!raw.writableFinished) job.cancel(new Abandoned('nobody listens any more'))
  }
  // Gone already, while the body was read.
  if (raw.destroyed || raw.closed) onClose()
  else raw.once('close', onClose)
}
