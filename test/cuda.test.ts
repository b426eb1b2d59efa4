// The CUDA path from JavaScript to the kernels and back, on the emulator (test/simt): what it computes,
// and what happens when its memory is exhausted or the device is lost.
// timeout: 300s
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type Precision, type RawImage, type SampleOptions } from '../lib/index.js'
import { runModule } from './helpers/child.js'
import { emulated } from './helpers/cuda.js'
import { difference, Expected, sameBits } from './helpers/expected.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { rows, tiny, weights } from './helpers/training.js'

const micro = fixture('dit_tiny_forward/micro24/model.safetensors')
const pipeline = fixture('diffusers_pipeline')
const precisions: Precision[] = ['fp32', 'tf32', 'bf16']
const load = (source: string, precision: Precision) =>
  DiT.load(source, { device: emulated, precision })

// ---- values ----

for (const precision of precisions) {
  test(`denoise in ${precision} agrees with the reference`, async () => {
    await using dit = await load(micro, precision)
    assert.equal([dit.device, dit.precision], ['cuda:emulated', precision])
    const expected = await Expected.read('dit_tiny_forward/micro24/forward.safetensors')
    const x = expected.get('x')
    const out = await dit.denoise({ x, t: expected.numbers('t'), y: expected.numbers('y') })
    if (precision === 'fp32') {
      expected.check('out', out)
      return
    }
    // As near as twice a naive run in bf16; TF32 has three bits more.
    const naive = expected.tolerance('out').all_bf16_vs_f64?.rel_l2_err as number
    const { relL2 } = difference(out.data, expected.get('out_f64').data)
    const bound = precision === 'bf16' ? 2 * naive : (2 * naive) / 4
    assert.ok(relL2 <= bound, `${relL2}, not ${bound}`)
    assert.ok(relL2 > 0, 'another precision gives other numbers')
  })
}

const sampled: SampleOptions = { steps: 4, seed: 11, eta: 0.5, sampler: 'ddim', guidance: 2.5 }

for (const precision of precisions) {
  test(`sample in ${precision}: a seed gives the same bits alone and in company`, async () => {
    await using dit = await load(micro, precision)
    const alone = await dit.sample(3, { ...sampled, output: 'latent' })
    // In rounds of other sizes, with rows that come and go: replayed recordings and new ones.
    const others = [
      dit.sample([0, 1], { seed: 5, steps: 3, output: 'latent' }),
      dit.sample(2, { seed: 6, steps: 7, guidance: 1, sampler: 'ddpm', output: 'latent' }),
    ]
    const batch = await dit.sample([3, 4, 3], { ...sampled, output: 'latent' })
    await Promise.all(others)
    const again = await dit.sample(3, { ...sampled, output: 'latent' })
    const count = alone.data.length
    assert.ok(sameBits(batch.data.slice(0, count), alone.data))
    assert.ok(sameBits(again.data, alone.data))
    assert.ok(!sameBits(batch.data.slice(2 * count), alone.data), 'another seed')

    await using cpu = await DiT.load(micro, { device: 'cpu', precision: 'fp32', threads: 1 })
    const { data } = await cpu.sample(3, { ...sampled, output: 'latent' })
    const { relL2 } = difference(alone.data, data)
    const bound = { fp32: 1e-5, tf32: 5e-3, bf16: 4e-2 }[precision]
    assert.ok(relL2 <= bound, `${relL2} from the CPU's fp32, not ${bound}`)
  })
}

for (const precision of ['fp32', 'bf16'] as const) {
  test(`sample in ${precision}: set aside between recorded rounds, an image keeps its bits`, async () => {
    await using dit = await DiT.load(micro, { device: emulated, precision, maxBatch: 2 })
    for (const sampler of ['dpm++', 'ddim', 'ddpm'] as const) {
      const given = { sampler, steps: 24, seed: 11, output: 'latent' } as const
      const alone = await dit.sample(3, given)
      let steps = 0
      const others: Promise<unknown>[] = []
      const onProgress = () => {
        if (++steps % 4 === 0) {
          // Both lanes, from the next round on; then one, then both again.
          others.push(dit.sample([1, 2, 0], { steps: 3, seed: steps, output: 'latent' }))
        }
      }
      const aside = await dit.sample(3, { ...given, priority: -1, onProgress })
      await Promise.all(others)
      assert.ok(others.length >= 5)
      assert.ok(sameBits(aside.data, alone.data), sampler)
    }
  })
}

test('a picture from a pipeline with a VAE is the CPU’s but for rounding', async () => {
  const options: SampleOptions = { seed: 3, steps: 3 }
  await using dit = await load(pipeline, 'fp32')
  await using cpu = await DiT.load(pipeline, { device: 'cpu', precision: 'fp32', threads: 1 })
  const [got] = await dit.sample(1, { ...options, preview: 2 })
  const [want] = await cpu.sample(1, options)
  const far = (a: RawImage, b: RawImage) =>
    Math.max(...a.data.map((value, i) => Math.abs(value - (b.data[i] as number))))
  assert.ok(got && want && got.data.length === want.data.length)
  assert.ok(far(got, want) <= 1, `${far(got, want)} steps of a byte apart`)
  const again = await dit.decode(await dit.encode([got]))
  const there = await cpu.decode(await cpu.encode([got]))
  assert.ok(far(again[0] as RawImage, there[0] as RawImage) <= 1)
})

// ---- training ----

async function trained(device: 'cpu' | typeof emulated, precision: Precision) {
  await using dit = await DiT.create(tiny, { device, precision, threads: 1, seed: 1 })
  await using trainer = await dit.trainer({ batchSize: 3, lr: 1e-3, seed: 5 })
  const losses: number[] = []
  for (let step = 0; step < 3; step++) {
    const { loss, outcome } = await trainer.step(rows(4 * step, 4))
    assert.is(outcome, 'applied')
    losses.push(loss)
  }
  const { data } = await dit.sample(1, { seed: 2, steps: 2, output: 'latent' })
  return { losses, data }
}

test('three steps of training are the CPU’s but for rounding', async () => {
  const want = await trained('cpu', 'fp32')
  for (const precision of precisions) {
    const got = await trained(emulated, precision)
    const bound = { fp32: 1e-5, tf32: 2e-3, bf16: 2e-2 }[precision]
    for (const part of ['losses', 'data'] as const) {
      const { relL2 } = difference(got[part], want[part])
      assert.ok(relL2 <= bound, `${precision}: ${part} ${relL2} apart, not ${bound}`)
    }
  }
})

test('a training that is saved goes on bit for bit', async () => {
  const folder = temporaryFolder()
  const checkpoint = (name: string) => path.join(folder, name)
  const open = () => DiT.create(tiny, { device: emulated, precision: 'bf16', seed: 1 })
  {
    await using dit = await open()
    await using trainer = await dit.trainer({ batchSize: 4, seed: 5 })
    for (let step = 0; step < 3; step++) {
      if (step === 1) await trainer.save(checkpoint('one'))
      await trainer.step(rows(4 * step, 4))
    }
    await trainer.save(checkpoint('three'))
  }
  await using dit = await open()
  await using trainer = await dit.trainer({ batchSize: 4, seed: 5 })
  await trainer.resume(checkpoint('one'))
  for (let step = 1; step < 3; step++) await trainer.step(rows(4 * step, 4))
  await trainer.save(checkpoint('again'))
  assert.equal(weights(checkpoint('again')), weights(checkpoint('three')))
})

// ---- failures ----

test('memory that is exhausted is told of, and the model stays usable', async () => {
  await using dit = await load(pipeline, 'fp32')
  const [before] = await dit.sample(1, { seed: 3, steps: 3 })
  // One picture whose activations are more than the 2 GiB of the emulated device.
  const side = 2048
  const latents = { data: new Float32Array(4 * side * side), shape: [1, 4, side, side] }
  await rejects(
    () => dit.decode(latents),
    'ERR_DIT_OOM',
    /cannot allocate \d+ bytes of memory, \d+ of 2147483648 are free/,
  )
  const [after] = await dit.sample(1, { seed: 3, steps: 3 })
  assert.ok(before && after && sameBits(before.data, after.data))
  const huge = { depth: 24, hidden: 2048, heads: 16, latentSize: 8 } as const
  await rejects(() => DiT.create(huge, { device: emulated }), 'ERR_DIT_OOM', /bytes/)
})

test('a device that is lost fails everything, now and later; close and the process go on', async () => {
  const { status, stdout, stderr } = await runModule(`
    import { DiT } from './lib/index.ts'
    const options = { device: 'cuda:emulated', precision: 'fp32' }
    const dit = await DiT.load('${pipeline}', options)
    const other = await DiT.load('${pipeline}', options)
    await dit.sample(1, { steps: 2 })
    const codes = []
    const told = (work) => work.then(() => codes.push('none'), (error) => codes.push(error.code))
    process.env.DIT_SIMT_FAIL_LAUNCH = '100'
    const underWay = [dit.sample([1, 2], { steps: 50 }), dit.sample(0, { steps: 50 })]
    await Promise.all(underWay.map(told))
    await told(dit.sample(1))
    await told(other.sample(1))
    await told(dit.trainer())
    await told(DiT.load('${pipeline}', options))
    await dit.close()
    await other.close()
    await told(dit.sample(1))
    const cpu = await DiT.load('${pipeline}', { device: 'cpu' })
    await cpu.sample(1, { steps: 2 })
    await cpu.close()
    console.log(codes.join(' '))`)
  const lost = 'ERR_DIT_DEVICE_LOST'
  assert.is(status, 0, stderr)
  assert.is(stdout.trim(), [...Array(6).fill(lost), 'ERR_DIT_CLOSED'].join(' '))
})

test.run()
