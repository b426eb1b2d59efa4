// A user's module, compiled against the package as npm ships it (test/types.test.ts). It is not run.
// Where a use is wrong, the line above says so: tsc fails when such a line is right after all.

import {
  type ClassNames,
  DiT,
  DiTError,
  type DiTErrorCode,
  imageGrid,
  type Latents,
  RawImage,
  type SampleOptions,
  type Seed,
  type StreamEvent,
  type Tensor,
} from 'dit-native'

// ---- right uses: the types of what comes back ----

const dit: DiT = await DiT.load('facebook/DiT-XL-2-256', {
  device: 'cuda:1',
  precision: 'bf16',
  weights: 'ema',
  vae: 'stabilityai/sd-vae-ft-mse',
  latentSize: [32, 64],
  threads: 4,
  onProgress(progress) {
    if (progress.phase === 'download') console.log(progress.file, progress.loaded / progress.total)
    else console.log(progress.phase, progress.loaded)
  },
})

const images: RawImage[] = await dit.sample([207, 'tabby cat', new Float32Array(1152)], {
  sampler: 'dpm++',
  steps: 25,
  guidance: 4,
  guidanceChannels: 'all',
  guidanceInterval: [0.1, 0.9],
  seed: 1n,
  signal: AbortSignal.timeout(1000),
  onProgress: ({ step, steps }) => console.log(step, steps),
})
const [image] = images
const seed: Seed | undefined = image?.seed
const label: number | undefined = image?.label
const png: Buffer | undefined = await image?.toPNG()
await image?.toFile('out.webp')
await (await imageGrid(images, { columns: 2, gap: 1 })).toFile('grid.png')

const kept: SampleOptions = { steps: 10, seeds: [1, 2n] }
const again: RawImage[] = await dit.sample(['a', 'b'], kept)
const latents: Latents = await dit.sample(1, { output: 'latent' })
const seeds: Seed[] = latents.seeds
const either: RawImage[] | Latents = await dit.sample(1, {
  output: Math.random() < 0.5 ? 'latent' : 'image',
})
const decoded: RawImage[] = await dit.decode(latents)
const encoded: Tensor = await dit.encode(decoded, { sample: true, seed: 5 })
const one: Tensor = await dit.encode({ data: new Uint8Array(12), width: 2, height: 2, channels: 3 })
const noise: Tensor = await dit.denoise({ x: encoded, t: [10, 20], y: [1, 'b'], guidance: 2 })

for await (const event of dit.stream([1, 2], { preview: 5 })) {
  const some: StreamEvent = event
  if (event.type === 'progress') console.log(event.step / event.steps)
  else if (event.type === 'preview') await event.image.toFile(`${event.index}.png`)
  else if (event.type === 'images') console.log(event.images.length, event.decodeSeconds)
  else console.log(some.type, event.latents.shape)
}

const fresh = await DiT.create({ depth: 4, hidden: 128, heads: 4, latentSize: 16 }, { seed: 1 })
await DiT.create('DiT-XL/2', { id2label: { 0: 'cat' }, schedule: { kind: 'cosine' } })
const names: ClassNames = fresh.classNames
const height: number = fresh.config.latentSize[0]
const total: number = fresh.memory().total
for (const device of await DiT.devices()) {
  console.log(device.available ? device.precisions : device.reason)
}
await fresh.save('folder', { dtype: 'bf16', vae: false })
{
  await using held = await DiT.load('demo')
  console.log(held.source.description, held.schedule.steps, held.vae?.scalingFactor)
}
await Promise.all([dit.close(), fresh.close()])
try {
  await dit.sample(1)
} catch (error) {
  if (error instanceof DiTError) {
    const code: DiTErrorCode = error.code
    console.log(code === 'ERR_DIT_CLOSED')
  }
}
const made = new RawImage({ data: new Uint8Array(3), width: 1, height: 1, channels: 3 })
console.log(seed, label, png, again, seeds, either, one, noise, names[3], height, total, made)

// ---- wrong uses ----

// @ts-expect-error: the constructor is not public
new DiT()
// @ts-expect-error: a source is needed
await DiT.load()
// @ts-expect-error: no such device
await DiT.load('x', { device: 'gpu' })
// @ts-expect-error: no such precision
await DiT.load('x', { precision: 'fp16' })
// @ts-expect-error: misspelt
await DiT.load('x', { weight: 'ema' })
// @ts-expect-error: two numbers, not three
await DiT.load('x', { latentSize: [1, 2, 3] })
// @ts-expect-error: misspelt
await DiT.create({ depht: 1 })
// @ts-expect-error: a label is a number, a string or numbers
await dit.sample(true)
// @ts-expect-error: an embedding has 32-bit floats
await dit.sample(new Float64Array(3))
// @ts-expect-error: no such sampler
await dit.sample(1, { sampler: 'euler' })
// @ts-expect-error: a number
await dit.sample(1, { steps: '25' })
// @ts-expect-error: misspelt
await dit.sample(1, { guidanceScale: 4 })
// @ts-expect-error: a pair
await dit.sample(1, { guidanceInterval: [0.5] })
// @ts-expect-error: images have no shape
;(await dit.sample(1)).shape
// @ts-expect-error: latents are no array
;(await dit.sample(1, { output: 'latent' })).map(String)
// @ts-expect-error: there may be no such image
images[0].width
// @ts-expect-error: a seed may be absent
const certain: Seed = made.seed
// @ts-expect-error: the model's size cannot be changed
fresh.config.depth = 5
// @ts-expect-error: class names cannot be changed
fresh.classNames[0] = 'dog'
// @ts-expect-error: pixels are bytes
new RawImage({ data: new Float32Array(3), width: 1, height: 1, channels: 3 })
// @ts-expect-error: t is needed
await dit.denoise({ x: encoded, y: 1 })
// @ts-expect-error: a tensor has 32-bit floats
await dit.decode({ data: new Float64Array(1), shape: [1] })
// @ts-expect-error: no such type to save
await dit.save('x', { dtype: 'fp16' })
// @ts-expect-error: no such code
new DiTError('ERR_DIT_WRONG', '')

// @ts-expect-error: what only the package itself uses is not exported
export { Engine } from 'dit-native'

console.log(certain)
