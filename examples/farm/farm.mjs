// What those who want images and those who make them agree on: a queue of BullMQ, on Redis (or Valkey).
//
// A job is one image: { label, seed, steps, … }, what dit.sample takes. Its result is a PNG file that is
// named after the job's id, in a folder that all machines share.

import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { Queue, QueueEvents, QueueEventsProducer } from 'bullmq'

export const queueName = 'dit-images'
export const connection = { url: process.env.REDIS_URL ?? 'redis://127.0.0.1:6379' }
export const resultsFolder = process.env.RESULTS ?? 'results'

/** Ids may come from elsewhere: none names a file outside of the folder. */
export function resultFile(id) {
  if (!/^[\w-]{1,100}$/.test(id)) {
    throw new TypeError(`Expected letters, digits, _ and - for the id of a job but got ${id}`)
  }
  return path.join(resultsFolder, `${id}.png`)
}

/** The side that wants images. */
export class Farm {
  #queue = new Queue(queueName, { connection })
  #events = new QueueEvents(queueName, { connection })
  #cancels = new QueueEventsProducer(queueName, { connection })

  constructor() {
    this.#queue.setMaxListeners(0) // each job that is waited for has one there
  }

  /**
   * Asks for an image; resolves to its job. Giving the id makes asking again harmless: a job that is
   * there is not added twice.
   */
  async submit(image, { id = randomUUID(), priority } = {}) {
    resultFile(id) // throws for one that cannot be a name
    return this.#queue.add('image', image, {
      jobId: id,
      ...(priority !== undefined && { priority }), // BullMQ's: 1 comes first
      attempts: 3, // after an error; a killed worker's jobs are handed on besides
      backoff: { type: 'exponential', delay: 1000 },
      removeOnComplete: { age: 24 * 3600 },
      removeOnFail: { age: 24 * 3600 },
    })
  }

  /** Resolves to { file, worker } when the image is there; rejects when it failed or was cancelled. */
  finished(job) {
    return job.waitUntilFinished(this.#events)
  }

  /**
   * Nobody wants the image any more. The mark stays with the job, for the worker that has yet to begin (or
   * to begin again, should its worker be killed); the event reaches the one that is at it.
   */
  async cancel(id) {
    const job = await this.#queue.getJob(id)
    if (job === undefined) return
    await job.updateData({ ...job.data, cancelled: true })
    await this.#cancels.publishEvent({ eventName: 'cancel', jobId: id })
  }

  /** Calls back with (id, { step, steps, worker }). */
  onProgress(listener) {
    this.#events.on('progress', ({ jobId, data }) => listener(jobId, data))
  }

  /** Until events are listened for. */
  async ready() {
    await this.#events.waitUntilReady()
  }

  async close() {
    await Promise.all([this.#queue.close(), this.#events.close(), this.#cancels.close()])
  }
}
