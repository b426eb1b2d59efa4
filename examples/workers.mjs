// Models in worker threads: node examples/workers.mjs
//
// One model needs none for speed: it works on a thread of its own, and the event loop stays free. Worker
// threads are for what an application does beside it in JavaScript (here: encoding PNG files), or to keep
// several models apart. A binary is loaded once for all of them, and processor threads are shared.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { DiT } from 'dit-native'

const labels = ['Sneaker', 'Bag', 'Trouser', 'Dress', 'Sandal', 'Coat']

if (isMainThread) {
  const count = 2
  const workers = Array.from({ length: count }, (_, worker) => {
    const own = labels.filter((_, k) => k % count === worker)
    return new Worker(new URL(import.meta.url), { workerData: { own } })
  })
  await Promise.all(
    workers.map(
      (worker) =>
        new Promise((resolve, reject) => {
          worker.on('message', ({ label, bytes }) => console.log(`${label}: PNG of ${bytes} bytes`))
          worker.on('error', reject)
          worker.on('exit', resolve)
        }),
    ),
  )
} else {
  const dit = await DiT.load('demo', { threads: 1 })
  for (const label of workerData.own) {
    const [image] = await dit.sample(label, { steps: 20, guidance: 2, seed: 1 })
    const png = await image.toPNG()
    parentPort.postMessage({ label, bytes: png.length })
  }
  await dit.close() // a worker that is terminated instead frees its model as well
}
