// Makes images for the farm: one process for each GPU (DEVICE=cuda:1), or for each machine that has none.
//
//   REDIS_URL=redis://queue:6379 RESULTS=/shared/results MODEL=facebook/DiT-XL-2-256 node worker.mjs
//
// Several jobs are under way at once: their images share the model's rounds (continuous batching), and a job
// that comes joins at the next one. SIGTERM lets those under way finish; what a killed worker (kill -9)
// had taken is handed on when its locks run out.

import { access, mkdir, rename, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { Job, QueueEvents, UnrecoverableError, Worker } from 'bullmq'
import { DiT } from 'dit-native'
import { connection, queueName, resultFile, resultsFolder } from './farm.mjs'

const {
  MODEL = 'demo',
  DEVICE = 'auto',
  THREADS = '0',
  CONCURRENCY,
  LOCK_SECONDS = '30',
} = process.env
const name = `${hostname()} ${process.pid}`

await mkdir(resultsFolder, { recursive: true })
const dit = await DiT.load(MODEL, { device: DEVICE, threads: Number(THREADS) })

const lockDuration = 1000 * Number(LOCK_SECONDS)
const worker = new Worker(queueName, makeImage, {
  connection,
  name,
  // As many as the model has in the making at once, and as many to take their places without a pause.
  concurrency: Number(CONCURRENCY ?? (dit.device === 'cpu' ? 8 : 64)),
  lockDuration, // renewed at half of it
  stalledInterval: lockDuration, // how often any worker looks for locks that ran out
  maxStalledCount: 3, // a job whose workers die so often is to blame itself
})
worker.on('error', (error) => console.error(`${name}: ${error.message}`))

const events = new QueueEvents(queueName, { connection })
events.on('cancel', ({ jobId }) => worker.cancelJob(jobId, 'cancelled'))
events.on('error', (error) => console.error(`${name}: ${error.message}`))
await Promise.all([worker.waitUntilReady(), events.waitUntilReady()])

async function makeImage({ id }, _token, signal) {
  // Read anew: a cancellation since the job was taken has marked it, one from now on aborts the signal.
  const job = await Job.fromId(worker, id)
  const { cancelled, label, ...options } = job.data
  if (cancelled) throw new UnrecoverableError('cancelled')
  const file = resultFile(id)
  if (await exists(file)) return { file, worker: name } // its worker was killed just before it could tell

  try {
    let told = 0
    for await (const event of dit.stream(label, { ...options, signal })) {
      if (event.type === 'progress' && Date.now() - told > 200) {
        told = Date.now()
        await job.updateProgress({ step: event.step, steps: event.steps, worker: name })
      }
      if (event.type === 'images') await writeOnce(file, await event.images[0].toPNG())
    }
  } catch (error) {
    if (signal.aborted) throw new UnrecoverableError('cancelled')
    // What is wrong with the request is wrong the next time, too. All else is tried again.
    if (['ERR_DIT_OPTION', 'ERR_DIT_SHAPE'].includes(error.code)) {
      throw new UnrecoverableError(`${error.message} (${error.code})`)
    }
    throw error
  }
  console.log(`made ${id}`)
  return { file, worker: name }
}

/** Nobody sees half a file. Should two workers have made the image, they made the same one. */
async function writeOnce(file, bytes) {
  const part = `${file}.${process.pid}.part`
  await writeFile(part, bytes)
  await rename(part, file)
}

async function exists(file) {
  return access(file).then(
    () => true,
    () => false,
  )
}

process.once('SIGTERM', async () => {
  await worker.close() // takes no more jobs, and waits for those under way
  await events.close()
  await dit.close()
})
console.log(`${name}: ${dit.source.description} on ${dit.device}, ready`)
