// The least: two images of the bundled model, as PNG files. node examples/sample.mjs
import { DiT } from 'dit-native'

const dit = await DiT.load('demo') // or 'facebook/DiT-XL-2-256', a folder, a .safetensors, a .pt
console.log(`${dit.source.description} on ${dit.device}, ${dit.precision}`)

const images = await dit.sample(['Sneaker', 'Bag'], { steps: 25, guidance: 2, seed: 1 })
for (const image of images) {
  const file = `${dit.classNames[image.label]}.png`
  await image.toFile(file)
  console.log(`${file}: ${image.width}×${image.height}, seed ${image.seed}`)
}
await dit.close()
