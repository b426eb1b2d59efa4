// An image is made by its seed, its options, the device and the precision; what shares the model
// with it never changes a bit.
// timeout: 240s
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { resolveSource } from '../lib/formats/source.js'
import { DiT, type Precision, type SampleOptions } from '../lib/index.js'
import { sameBits } from './helpers/expected.js'
import { fixture } from './helpers/files.js'
import { materialise } from './helpers/tensors.js'

const fashion = fixture('fashion_dit/fashion.pt')
const pipeline = fixture('diffusers_pipeline')

async function precisions(): Promise<Precision[]> {
  const devices = await DiT.devices()
  return devices.flatMap((device) => (device.available ? device.precisions : []))
}

/** Both cores: what threads do must not depend on what they share. */
const load = (source: string, precision: Precision) => DiT.load(source, { precision, threads: 2 })

const watched: SampleOptions[] = [
  { seed: 11, steps: 7 },
  { seed: 11, steps: 6, sampler: 'ddim', eta: 0.7, clip: true },
  { seed: 11, steps: 5, sampler: 'ddpm', guidance: 2.5, guidanceInterval: [0.2, 0.8] },
]

for (const precision of await precisions()) {
  for (const [name, source] of [
    ['pixels', fashion],
    ['latents and VAE', pipeline],
  ] as const) {
    test(`${name}, ${precision}: the same bits alone, twice, in a batch, and beside other calls`, async () => {
      await using dit = await load(source, precision)
      for (const options of watched) {
        const [alone] = await dit.sample(3, options)
        const bytes = alone?.data as Uint8Array
        assert.ok(new Set(bytes).size > 10, 'the image is no image')
        const same = (data: Uint8Array | undefined, what: string) => {
          assert.ok(data && sameBits(data, bytes), `${what}: ${JSON.stringify(options)}`)
        }

        const [again] = await dit.sample(3, options)
        same(again?.data, 'twice in a row')

        const { seed: _, ...rest } = options
        const batch = await dit.sample([1, 3, 3, 4], { ...rest, seeds: [5, 11, 12, 11n] })
        same(batch[1]?.data, 'in a batch of four')
        assert.not.ok(sameBits(batch[2]?.data as Uint8Array, bytes))
        assert.equal(
          batch.map(({ seed, label }) => [seed, label]),
          [
            [5, 1],
            [11, 3],
            [12, 3],
            [11, 4],
          ],
        )

        // More images than lanes, each call with another sampler, spacing, guidance and length.
        const others = [
          dit.sample([0, 1, 2], { sampler: 'ddim', spacing: 'ddim10', guidance: 1 }),
          dit.sample([4, 3], { sampler: 'ddpm', spacing: '3,4', guidance: 7 }),
          dit.sample(3, { steps: 9, clip: true, output: 'latent' }),
          dit.sample(3, { ...options, seed: 12 }),
        ]
        const [beside] = await dit.sample(3, options)
        same(beside?.data, 'beside other calls')
        const [size, width] = dit.config.latentSize
        const x = {
          data: new Float32Array(5 * dit.config.channels * size * width).fill(0.3),
          shape: [5, dit.config.channels, size, width],
        }
        const [[during]] = await Promise.all([
          dit.sample(3, options),
          dit.denoise({ x, t: 400, y: 2, guidance: 3 }),
          dit.denoise({ x, t: 3, y: [0, 1, 2, 3, 4] }),
          ...others,
        ])
        same(during?.data, 'beside evaluations')
      }
    })
  }

  test(`${precision}: seeds, recorded noise and latents say the same`, async () => {
    await using dit = await load(pipeline, precision)
    const options = { steps: 4, seed: 2n ** 64n - 2n }
    const images = await dit.sample([0, 1, 2], options)
    // The seeds of a call go on from the first, around the end of 64 bits.
    assert.equal(
      images.map(({ seed }) => seed),
      [2n ** 64n - 2n, 2n ** 64n - 1n, 0],
    )
    const [last] = await dit.sample(2, { steps: 4, seed: 0 })
    assert.equal(last, images[2])

    const latents = await dit.sample([0, 1, 2], { ...options, output: 'latent' })
    assert.equal(
      latents.seeds,
      images.map(({ seed }) => seed),
    )
    assert.equal(latents.labels, [0, 1, 2])
    const decoded = await dit.decode(latents)
    for (const [i, image] of decoded.entries()) {
      assert.ok(
        sameBits(image.data, images[i]?.data as Uint8Array),
        'decode() is what sample() does',
      )
    }
    assert.is(decoded[0]?.seed, undefined)

    // Without a seed: random, and told.
    const [random] = await dit.sample(1, { steps: 2 })
    const [other] = await dit.sample(1, { steps: 2 })
    assert.not.equal(random?.seed, other?.seed)
    const [repeated] = await dit.sample(1, { steps: 2, seed: random?.seed as number })
    assert.equal(repeated, random)
  })
}

test('a class and its own embedding make the same image', async () => {
  await using dit = await load(fashion, 'fp32')
  const source = await resolveSource(fashion)
  const table = source.dit.tensors.find(({ name }) => name.startsWith('y_embedder'))
  const rows = materialise(table as NonNullable<typeof table>).data
  const { hidden } = dit.config
  const embedding = rows.slice(3 * hidden, 4 * hidden)
  const options = { seed: 4, steps: 5 }
  const [byClass] = await dit.sample(3, options)
  const [one, two] = await dit.sample([embedding, 3], options)
  assert.ok(sameBits(one?.data as Uint8Array, byClass?.data as Uint8Array))
  assert.is(one?.label, undefined)
  assert.is(two?.label, 3)
})

test.run()
