// The machine code of the CUDA kernels against the rules of scripts/cuda/rules.mjs. The library itself
// is checked where nvcc has built it and cuobjdump is to be had; that the rules see what they are for,
// on listings as cuobjdump prints them, everywhere.
// timeout: 300s
import { existsSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageRoot } from '../lib/root.cjs'
import {
  disassemble,
  faultsOf,
  findCuobjdump,
  type Kernel,
  Listing,
  loopOf,
  mainLoop,
} from '../scripts/cuda/sass.mjs'

const library = path.join(packageRoot, 'build/Release/libdit_cuda.so')

/** A kernel of these instructions, 16 bytes each, as cuobjdump prints them. */
function kernel(name: string, instructions: string[]): Kernel {
  const listing = new Listing()
  listing.add('arch = sm_90a')
  listing.add(`\t\tFunction : ${name}`)
  for (const [i, text] of instructions.entries()) {
    const address = (16 * i).toString(16).padStart(4, '0')
    listing.add(`        /*${address}*/                   ${text} ;    /* 0x000000ff00017b82 */`)
    listing.add('                                                  /* 0x000ff00000000800 */')
  }
  return { ...(listing.kernels[0] as Kernel), name }
}

const products = (last: string, waits: string) => [
  'SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR21+0x32000], R15',
  `HGMMA.64x192x16.F32.BF16 R24, gdesc[UR16], R24${waits}`,
  `HGMMA.64x192x16.F32.BF16 R24, gdesc[UR16], R24${waits}`,
  `HGMMA.64x192x16.F32.BF16 R24, gdesc[UR16], R24${waits}`,
  'HGMMA.64x192x16.F32.BF16 R24, gdesc[UR16], R24, gsb0',
  'WARPGROUP.DEPBAR.LE gsb0, 0x1',
  last,
]
const begin = ['ACQBULK', 'PREEXIT']
const gemm = (loop: string[]) =>
  kernel('hopper::gemmKernel<hopper::GemmShape<128, 192, 2, 8, 1, false>, false, false, E>', [
    ...begin,
    'USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xe8',
    ...products('NOP', ''),
    ...loop,
    '@!P0 BRA 0xa0',
    'STG.E.64 desc[UR16][R16.64+0x20], R32',
    'USETMAXREG.DEALLOC.CTAPOOL 0x28',
    'UTMALDG.2D [UR16], [UR14]',
    'UTMALDG.2D.MULTICAST [UR16], [UR14], UR4',
    'EXIT',
  ])

test('a loop of products that run on keeps the rules', () => {
  const good = gemm(products('@!P0 SYNCS.ARRIVE.TRANS64.RED.A1T0 RZ, [R13+URZ], RZ', ''))
  assert.equal(faultsOf(good), [])
  assert.is(mainLoop(good.code, 'HGMMA')?.length, 8)
  const loop = loopOf(good)
  assert.equal([loop?.main, loop?.products, loop?.instructions], ['HGMMA', 4, 8])
})

const faults = (loop: string[]) => faultsOf(gemm(loop)).join('\n')

test('products that wait for one another break a rule', () => {
  assert.match(faults(products('NOP', ', gsb0')), 'main loop: 4 HGMMA in 4 groups, not 4 in each')
})

test('a fence, a barrier or a read of memory in the main loop breaks a rule', () => {
  assert.match(faults(products('@!P0 MEMBAR.ALL.GPU', '')), 'main loop: 1 MEMBAR, not 0')
  assert.match(faults(products('BAR.SYNC.DEFER_BLOCKING 0x0', '')), 'main loop: 1 BAR, not 0')
  assert.match(faults(products('LDG.E.64 R150, desc[UR24][R22.64]', '')), '1 LDG, not 0')
})

test('local memory and atomics break a rule in any kernel', () => {
  assert.equal(faultsOf(kernel('anyKernel<float>', [...begin, 'LDG.E R1, [R2]', 'EXIT'])), [])
  const bad = kernel('anyKernel<float>', ['STL [R1], R12', 'LDL.LU R14, [R1]', 'RED.E.ADD.F32 R2'])
  const lines = faultsOf(bad).join('\n')
  for (const kind of ['LDL', 'STL', 'RED']) assert.match(lines, `1 ${kind}, not 0`)
})

test('a kernel that does not wait for those before, or reads first, breaks a rule', () => {
  const without = kernel('anyKernel<float>', ['LDG.E R1, [R2]', 'EXIT'])
  assert.match(faultsOf(without).join('\n'), '0 ACQBULK, not at least 1')
  const early = kernel('anyKernel<float>', ['LDG.E R1, [R2]', ...begin, 'EXIT'])
  assert.match(faultsOf(early).join('\n'), 'LDG before ACQBULK')
})

test('tensor cores in a product of true fp32, or none in one of bf16, break a rule', () => {
  const mma = kernel('productKernelFp32<T>', ['HMMA.1688.F32.TF32 R4, R5, R6, R4', 'BRA 0x0'])
  assert.match(faultsOf(mma).join('\n'), 'kernel: 1 HMMA, not 0')
  const fma = kernel('productKernel<Bf16, T>', ['FFMA R4, R5, R6, R4', 'BRA 0x0'])
  assert.match(faultsOf(fma).join('\n'), 'main loop: none with HMMA')
})

test('the library that nvcc built keeps all rules', async () => {
  const cuobjdump = findCuobjdump()
  if (!existsSync(library) || !cuobjdump) {
    // Then nobody may believe that it was checked: whoever asks for it hears what is missing.
    const missing = existsSync(library) ? cuobjdump : library
    await disassemble(library, cuobjdump).then(
      () => assert.unreachable(),
      (error) => assert.instance(error, Error, `${missing} is not there`),
    )
    return
  }
  const kernels = await disassemble(library, cuobjdump)
  assert.ok(kernels.length > 400, `${kernels.length} kernels`)
  assert.equal(kernels.flatMap(faultsOf), [])
  for (const name of [
    'hopper::gemmKernel<',
    'hopper::attentionKernel<',
    'hopper::attentionBackwardKernel<',
    'productKernelFp32<',
  ]) {
    assert.ok(
      kernels.some((each) => each.name.startsWith(name) && loopOf(each)),
      name,
    )
  }
})

test.run()
