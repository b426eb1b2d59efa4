// Asks the farm for images and waits for them; Ctrl-C cancels those that are not there yet.
//
//   node submit.mjs --labels 207,360 --count 100 --seed 1 --steps 25 --guidance 4

import { parseArgs } from 'node:util'
import { Farm } from './farm.mjs'

const { values } = parseArgs({
  options: {
    labels: { type: 'string', default: '0' },
    count: { type: 'string', default: '10' },
    seed: { type: 'string', default: '0' },
    steps: { type: 'string', default: '25' },
    guidance: { type: 'string', default: '4' },
  },
})
const labels = values.labels
  .split(',')
  .map((label) => (/^\d+$/.test(label) ? Number(label) : label))

const farm = new Farm()
await farm.ready()
farm.onProgress((id, { step, steps, worker }) =>
  console.log(`${id}: ${step}/${steps} on ${worker}`),
)

const jobs = await Promise.all(
  Array.from({ length: Number(values.count) }, (_, k) =>
    farm.submit({
      label: labels[k % labels.length],
      seed: Number(values.seed) + k,
      steps: Number(values.steps),
      guidance: Number(values.guidance),
    }),
  ),
)
process.once('SIGINT', () => Promise.all(jobs.map((job) => farm.cancel(job.id))))

const results = await Promise.allSettled(jobs.map((job) => farm.finished(job)))
for (const [k, result] of results.entries()) {
  const text = result.status === 'fulfilled' ? result.value.file : result.reason.message
  console.log(`${jobs[k].id}: ${text}`)
}
await farm.close()
if (results.some(({ status }) => status === 'rejected')) process.exitCode = 1
