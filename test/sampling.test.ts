// timeout: 180s
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type SampleOptions, type Tensor } from '../lib/index.js'
import { Expected } from './helpers/expected.js'
import { fixture } from './helpers/files.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const tiny = fixture('dit_tiny_forward/a96h4/model.safetensors')
const fashion = fixture('fashion_dit/fashion.pt')

/** [steps, rows, C, H, W] as recorded, to [n, steps, C, H, W] of the first n rows. */
function stepNoise(recorded: Tensor, n: number): Tensor {
  const [steps, rows, ...rest] = recorded.shape as [number, number, ...number[]]
  const size = rest.reduce((product, length) => product * length, 1)
  const data = new Float32Array(n * steps * size)
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < steps; k++) {
      const from = (k * rows + i) * size
      data.set(recorded.data.subarray(from, from + size), (i * steps + k) * size)
    }
  }
  return { data, shape: [n, steps, ...rest] }
}

const trajectories: [name: string, options: SampleOptions<'latent'>][] = [
  ['a96h4_ddim_cfg4_eta0', { sampler: 'ddim', guidance: 4 }],
  ['a96h4_ddim_cfg4_eta1', { sampler: 'ddim', guidance: 4, eta: 1 }],
  ['a96h4_ddpm_cfg4', { sampler: 'ddpm', guidance: 4 }],
  ['a96h4_ddpm_cfg4_clip', { sampler: 'ddpm', guidance: 4, clip: true }],
  ['a96h4_ddpm_nocfg', { sampler: 'ddpm', guidance: 1 }],
]

for (const [name, options] of trajectories) {
  test(`sample: ${name} with the recorded noise ends where the reference ends`, async () => {
    await using dit = await DiT.load(tiny, fp32)
    const expected = await Expected.read(`sampling_trajectory/${name}.safetensors`)
    const n = expected.get('final').shape[0] as number
    const latents = await dit.sample(expected.numbers('y').slice(0, n), {
      ...options,
      steps: 10,
      noise: expected.first('x_init', n),
      stepNoise: stepNoise(expected.get('noise'), n),
      output: 'latent',
    })
    expected.check('final', { data: latents.data, shape: latents.shape })
  })
}

test('sample: the trained model gives the images of the reference', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const expected = await Expected.read('fashion_dit/expected.safetensors')
  const noise = expected.get('noise')
  const latents = await dit.sample(expected.numbers('labels'), {
    sampler: 'ddim',
    spacing: 'ddim50',
    guidance: 3,
    noise,
    output: 'latent',
  })
  const want = expected.get('ddim50_guidance3').data
  let worst = 0
  for (let i = 0; i < want.length; i++) {
    worst = Math.max(worst, Math.abs((latents.data[i] as number) - (want[i] as number)))
  }
  if (process.env.DIT_TEST_FIGURES) console.log(`fashion ddim50: max abs ${worst}`)
  assert.ok(worst < 1e-4, `max abs ${worst}`)
})

test.run()
