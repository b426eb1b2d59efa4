// A training that may be killed at any moment: node train_child.mjs <out> <steps> <saveEvery>
// Prints a line when the first step begins. Runs from dist/, which starts faster than the sources.

const [out, steps, saveEvery] = process.argv.slice(2)
const { DiT } = await import('../../dist/index.mjs')

/** 8×8 pixels from -1 to 1 that follow from the item's number. */
function* items(position) {
  for (let i = position; ; i++) {
    const image = Float32Array.from({ length: 64 }, (_, at) => Math.sin(i + at * ((i % 3) + 1)))
    yield { image, label: i % 3 }
  }
}

const config = { depth: 2, hidden: 32, heads: 2, latentSize: 8, channels: 1, numClasses: 3 }
const dit = await DiT.create(config, { precision: 'fp32', threads: 1, seed: 1 })
const options = { batchSize: 4, lr: 1e-3, emaDecay: 0.9, seed: 7, keep: 2, resume: true, out }
const events = dit.train(items, { ...options, steps: Number(steps), saveEvery: Number(saveEvery) })
for await (const { type, step } of events) if (type === 'start') console.log(step)
await dit.close()
