// Which devices there are, and what the option `device` finds: on this machine, and with drivers that
// are missing, hang, crash or calculate wrongly.
import { existsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { probeCuda } from '../lib/cuda_probe.js'
import { DiT } from '../lib/index.js'
import { nativeFile } from '../lib/native.js'
import { emulated } from './helpers/cuda.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'

const micro = fixture('dit_tiny_forward/micro24/model.safetensors')

test('devices: the processor can be used, and GPUs, or they say why not', async () => {
  const [cpu, ...gpus] = await DiT.devices()
  assert.ok(cpu?.available && cpu.device === 'cpu')
  assert.ok(cpu.precisions.includes('fp32') && cpu.threads >= 1 && cpu.memoryBytes > 1e8)
  assert.ok(gpus.length >= 1)
  for (const [i, gpu] of gpus.entries()) {
    if (!gpu.available) {
      assert.ok(gpu.reason.length > 10, gpu.reason)
      continue
    }
    assert.is(gpu.device, `cuda:${i}`)
    assert.ok(gpu.device !== 'cpu' && /^\d+\.\d$/.test(gpu.computeCapability))
    assert.equal(gpu.precisions, ['fp32', 'tf32', 'bf16'])
  }
})

test("device 'auto' takes a GPU that works, else the processor", async () => {
  await using dit = await DiT.load(micro)
  const gpu = (await DiT.devices()).find(({ device, available }) => available && device !== 'cpu')
  assert.is(dit.device, gpu?.device ?? 'cpu')
  await using named = await DiT.load(micro, { device: 'auto' })
  assert.is(named.device, dit.device)
})

test("device 'cuda' insists: it is had, or the reason is told", async () => {
  const gpus = (await DiT.devices()).filter(({ device }) => device !== 'cpu')
  const [first] = gpus
  if (first?.available) {
    await using dit = await DiT.load(micro, { device: 'cuda' })
    assert.equal([dit.device, dit.precision], ['cuda:0', 'bf16'])
  } else if (first?.device === 'cuda') {
    // No library, or no driver: what it says is what the devices say.
    const reason = /no NVIDIA driver was found|this build has no CUDA|the NVIDIA driver/
    assert.match(first.reason, reason)
    await rejects(() => DiT.load(micro, { device: 'cuda' }), 'ERR_DIT_DEVICE', reason)
    await rejects(() => DiT.create('DiT-S/8', { device: 'cuda:1' }), 'ERR_DIT_DEVICE', reason)
  }
  const missing = `cuda:${gpus.length + 7}` as const
  await rejects(
    () => DiT.load(micro, { device: missing }),
    'ERR_DIT_DEVICE',
    /^No device 'cuda:\d+': .*Use 'cpu' or 'auto'/,
  )
})

test("precision 'tf32' is for GPUs", async () => {
  await rejects(
    () => DiT.load(micro, { device: 'cpu', precision: 'tf32' }),
    'ERR_DIT_DEVICE',
    /^This processor \(.*\) has no tf32\. Use precision 'fp32'/,
  )
})

test("device 'cuda:emulated' is one only where the emulator was built", async () => {
  const library = path.join(path.dirname(nativeFile()), 'libdit_cuda_emulated.so')
  if (existsSync(library)) {
    await using dit = await DiT.load(micro, { device: emulated })
    assert.equal([dit.device, dit.precision], ['cuda:emulated', 'bf16'])
  } else {
    await rejects(() => DiT.load(micro, { device: emulated }), 'ERR_DIT_OPTION', /'cuda:<number>'/)
  }
})

// ---- the probe, with a native part that does what a damaged driver does ----

const devices = `[
  { device: 'cuda:0', problem: '', name: 'zero' },
  { device: 'cuda:1', problem: 'too old', name: '' },
  { device: 'cuda:2', problem: '', name: 'two' },
  { device: 'cuda:3', problem: '', name: 'three' },
]`

async function probe(source: string, seconds?: number) {
  const file = path.join(temporaryFolder(), 'native.cjs')
  writeFileSync(file, source)
  const found = await probeCuda(file, seconds)
  return found.map(({ device, problem }) => [device, problem])
}

test('the probe tries GPUs until one calculates rightly', async () => {
  const found = await probe(`
    const tried = []
    exports.cudaDevices = () => ${devices}
    exports.tryDevice = (device) => {
      tried.push(device)
      if (device === 'cuda:0') throw new Error('it calculates wrongly')
      if (device !== 'cuda:2') throw new Error(tried.join())
    }`)
  assert.equal(found, [
    ['cuda:0', 'it calculates wrongly'],
    ['cuda:1', 'too old'],
    ['cuda:2', ''],
    ['cuda:3', ''],
  ])
})

test('the probe outlives a driver that crashes, hangs, throws or talks', async () => {
  const crash = await probe(`exports.cudaDevices = () => process.kill(process.pid, 'SIGSEGV')`)
  assert.is(crash.length, 1)
  assert.match(crash[0]?.[1] as string, /the NVIDIA driver failed: .*SIGSEGV/)
  const hang = await probe('exports.cudaDevices = () => { for (;;); }', 1)
  assert.equal(hang, [['cuda', 'the NVIDIA driver did not answer within 1 s']])
  const thrown = await probe(`exports.cudaDevices = () => { throw new Error('an odd thing') }`)
  assert.match(thrown[0]?.[1] as string, /an odd thing/)
  const absent = await probe('exports.nothing = 1')
  assert.match(absent[0]?.[1] as string, /cudaDevices/)
  const noisy = await probe(
    `console.log('driver 1.0'); exports.cudaDevices = () => ${devices}; exports.tryDevice = () => {}`,
  )
  assert.equal(noisy.length, 4)
})

test.run()
