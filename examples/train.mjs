// Training a model from nothing, on data made here: discs and squares, 16×16 pixels. It takes less than a
// minute on a processor. node examples/train.mjs
//
// A folder of pictures goes in the place of the generator: dit.train('photos', { … }), with a subfolder for
// each class.
import { DiT, imageGrid } from 'dit-native'

const size = 16

/** Items without end, from a position on (so that a training that is resumed finds its place). */
function* shapes(position) {
  for (let i = position; ; i++) {
    const label = i % 2
    const [x, y, radius] = [7 + (i % 3) / 2, 7 + (i % 5) / 4, 4 + (i % 7) / 3]
    const image = Float32Array.from({ length: size * size }, (_, at) => {
      const [dx, dy] = [Math.abs((at % size) - x), Math.abs(Math.floor(at / size) - y)]
      const inside = label === 0 ? Math.hypot(dx, dy) <= radius : Math.max(dx, dy) <= radius
      return inside ? 1 : -1
    })
    yield { image, label }
  }
}

const dit = await DiT.create(
  { depth: 3, hidden: 64, heads: 2, patchSize: 2, latentSize: size, channels: 1, numClasses: 2 },
  { seed: 1, id2label: { 0: 'disc', 1: 'square' } },
)
const options = {
  batchSize: 32,
  lr: 2e-3,
  steps: Number(process.argv[2] ?? 1500),
  emaDecay: 0.99,
  seed: 1,
}
for await (const event of dit.train(shapes, { ...options, logEvery: 100 })) {
  if (event.type === 'step') console.log(`step ${event.step}: loss ${event.loss.toFixed(4)}`)
}

const images = await dit.sample(['disc', 'square', 'disc', 'square'], { guidance: 2, seed: 1 })
const grid = await imageGrid(images, { gap: 2 })
await grid.toFile('shapes.png')
await dit.save('shapes.safetensors') // DiT.load('shapes.safetensors')
await dit.close()
