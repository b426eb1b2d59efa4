// What the kernels' machine code is to be. A run would show it as time that nobody can explain:
// products that wait for one another, memory in place of registers, a fence in a loop.

const fp32 = { HMMA: 0, HGMMA: 0 }

const gemm = (perGroup) => ({
  main: 'HGMMA',
  counts: {
    HGMMA: [2 * perGroup],
    perGroup,
    UTMALDG: [2],
    'USETMAXREG.DEALLOC': 1,
    'USETMAXREG.TRY_ALLOC': 1,
    HMMA: 0,
  },
  loop: { perGroup, MEMBAR: 0, BAR: 0, ERRBAR: 0, LDG: 0, STG: 0, MUFU: 0 },
})

/**
 * A rule holds for kernels whose name (as in bench/KERNELS.md) matches `kernel`. `counts`: how many
 * instructions of a kind there are, exactly (a number) or at least ([number]). A kind may name
 * modifiers, in any order, that an instruction must have. `loop`: the same within the main loop, the
 * innermost one with the most of `main`; the compiler may have unrolled it. `groups`: groups of wgmma;
 * `perGroup`: their instructions. `first`: an instruction that stands before all that use global
 * memory. `arch`: of these architectures only.
 */
export const rules = [
  {
    why: 'registers, not local memory; no atomics, whose order of sums would change',
    kernel: /./,
    counts: { LDL: 0, STL: 0, ATOM: 0, ATOMG: 0, ATOMS: 0, RED: 0 },
  },
  {
    why: 'no global memory before the wait for the kernels before, which may still run',
    kernel: /./,
    arch: /^sm_90/,
    counts: { ACQBULK: [1], PREEXIT: [1] },
    first: 'ACQBULK',
  },
  {
    // Where ptxas thinks that sums are touched while products run, it puts a wait after every
    // product: a group each. MEMBAR: a fence for all of the device, some hundred clocks.
    why: 'products of warpgroups that run on, on what TMA brings, with registers divided anew',
    kernel: /^hopper::gemmKernel<hopper::GemmShape<(128, \d+, \d, \d, \d+, false|64,)/,
    ...gemm(4),
  },
  {
    why: 'the same where a warpgroup has two blocks of 64 rows',
    kernel: /^hopper::gemmKernel<hopper::GemmShape<(128, \d+, \d, \d, \d+, true|256,)/,
    ...gemm(8),
  },
  {
    why: 'TF32: two stages in a turn of the loop, each with fragments of its own, four and four',
    kernel: /^hopper::gemmKernel<hopper::GemmShape<[^>]*, float>/,
    main: 'HGMMA',
    counts: { 'HGMMA.F32.TF32': [16], LDSM: [16] },
    loop: { HGMMA: 8, LDSM: 8, groups: 2, MEMBAR: 0, BAR: 0, LDG: 0, STG: 0, STS: 0 },
  },
  {
    why: 'one copy for both blocks of a cluster',
    kernel: /^hopper::gemmKernel<hopper::GemmShape<\d+, \d+, 2,/,
    counts: { 'UTMALDG.MULTICAST': [1] },
  },
  {
    why: 'products of warpgroups that run on; a special-function instruction for each score',
    kernel: /^hopper::attentionKernel</,
    main: 'HGMMA',
    counts: { UTMALDG: [3], 'USETMAXREG.DEALLOC': 1, 'USETMAXREG.TRY_ALLOC': 1, HMMA: 0 },
    loop: { groups: 2, 'MUFU.EX2': 66, MEMBAR: 0, BAR: 0, LDG: 0, STG: 0 },
  },
  {
    // Three groups a step: dV and dK, the next scores, the next dP. FENCE: dS, before products read it
    // from shared memory, which the emulator does not know of. MEMBAR.GPU: what the block writes for
    // itself needs no fence beyond the block.
    why: 'five products of warpgroups that run on, a special-function instruction for each score',
    kernel: /^hopper::attentionBackwardKernel</,
    main: 'HGMMA',
    counts: {
      UTMALDG: [9],
      'USETMAXREG.DEALLOC': 2,
      'USETMAXREG.TRY_ALLOC': 1,
      HMMA: 0,
      'MEMBAR.GPU': 0,
    },
    loop: { groups: 3, 'MUFU.EX2': 32, STS: 16, 'FENCE.VIEW.ASYNC': 1, BAR: 0, LDG: 0 },
  },
  {
    why: 'bf16 on tensor cores, from copies that run by themselves',
    kernel: /^productKernel<Bf16,/,
    main: 'HMMA',
    counts: { 'HMMA.16816.F32.BF16': [4], 'LDGSTS.128': [2] },
    loop: { HMMA: [4], LDSM: [2], 'LDGSTS.128': [2], 'BAR.SYNC': [1], LDG: 0, STG: 0, FFMA: 0 },
  },
  {
    why: 'TF32 on tensor cores, from copies that run by themselves',
    kernel: /^productKernel<float,/,
    main: 'HMMA',
    counts: { 'HMMA.1688.F32.TF32': [4], 'LDGSTS.128': [2], 'HMMA.16816': 0 },
    loop: { HMMA: [4], 'LDGSTS.128': [2], 'BAR.SYNC': [1], LDG: 0, STG: 0, FFMA: 0 },
  },
  {
    why: 'true fp32, by fused multiply-adds alone',
    kernel: /^productKernelFp32</,
    main: 'FFMA',
    counts: { FFMA: [32], LDGSTS: [4], ...fp32 },
    loop: { FFMA: [32], 'LDS.128': [4], FMUL: 0, FADD: 0, LDG: 0, STG: 0 },
  },
  {
    why: 'convolutions in bf16 and TF32 on tensor cores',
    kernel: /^conv::convKernel<.*TensorSums/,
    main: 'HMMA',
    counts: { HMMA: [4], LDSM: [2], LDGSTS: [1] },
    loop: { HMMA: [4], LDSM: [2], STG: 0, FFMA: 0 },
  },
  {
    why: 'convolutions in true fp32, by fused multiply-adds alone',
    kernel: /^conv::convKernel<.*Fp32Sums/,
    main: 'FFMA',
    counts: { FFMA: [32], ...fp32 },
    loop: { FFMA: [32], 'LDS.128': [2], FMUL: 0, FADD: 0, STG: 0 },
  },
  {
    why: 'attention in bf16 on tensor cores',
    kernel: /^attention(Backward)?Kernel<AttentionShape<Bf16Product/,
    main: 'HMMA',
    counts: { 'HMMA.F32.BF16': [8], LDSM: [2], 'LDGSTS.128': [1] },
    loop: { HMMA: [8], 'MUFU.EX2': [4], STG: 0 },
  },
  {
    why: 'attention in TF32 on tensor cores',
    kernel: /^attention(Backward)?Kernel<AttentionShape<Tf32Product/,
    main: 'HMMA',
    counts: { 'HMMA.1688.F32.TF32': [8], 'HMMA.16816': 0 },
    loop: { HMMA: [8], STG: 0 },
  },
  {
    why: 'attention in true fp32',
    kernel: /^attention(Backward)?Kernel<AttentionShape<Fp32Product/,
    main: 'FFMA',
    counts: { FFMA: [32], ...fp32 },
    loop: { FFMA: [32], STG: 0 },
  },
  {
    why: 'one pass over memory, 16 bytes at a time',
    kernel: /^(adamWKernel<4>|squaresKernel<4>|addPartsKernel$|layerNormKernel<float)/,
    counts: { 'LDG.128': [1] },
  },
  {
    why: 'one pass over memory, four numbers of bf16 at a time',
    kernel: /^layerNormKernel<Bf16/,
    counts: { 'LDG.64': [1] },
  },
]
