// The forward pass of a DiT as an ONNX model for onnxruntime, over the weights of a safetensors file
// with official names (F32), which the model refers to and does not copy.
//
// Written so that onnxruntime's fastest CPU kernels run. Of the ways to say the same thing, measured
// for DiT-XL/2 with onnxruntime-node 1.30 on two Zen 5 cores (minimum of 8, standard operators with
// separate biases 1.20 s), this is the fastest, 1.11 s:
//   FusedMatMul with transB, so that weights are packed once, when the session is made
//   FastGelu and MultiHeadAttention, each of which adds the bias of the product before it
//   constant sizes, so that all shapes are known when the graph is optimised
// No gain: Gemm on flattened tokens (1.14 s), com.microsoft.Attention for product and attention
// together (1.21 s), three products instead of one and a Split (1.14 s), SkipLayerNormalization for
// residual and norm together (1.24 s).
import path from 'node:path'
import type { DiTConfig, TensorPart } from '../../lib/formats/types.js'
import { OnnxGraph } from './onnx.js'

/**
 * Inputs `x` [batch, channels, H, W] float, `t` [batch] float, `y` [batch] int64; output `out`
 * [batch, channels or twice that, H, W] float. The model must be written to the folder of the weights.
 */
export function ditOnnx(
  config: DiTConfig,
  batch: number,
  tensors: ReadonlyMap<string, TensorPart>,
): Buffer {
  const { depth, hidden, heads, patchSize, channels, learnSigma } = config
  const [height, width] = config.latentSize
  const [rows, columns] = [height / patchSize, width / patchSize]
  const tokens = rows * columns
  const outChannels = learnSigma ? 2 * channels : channels
  const g = new OnnxGraph()

  function weight(name: string): string {
    const tensor = tensors.get(name)
    if (tensor?.dtype !== 'F32') throw new Error(`no F32 tensor ${name} in the weights`)
    return g.external(name, path.basename(tensor.file), tensor.offset, tensor.shape)
  }
  const bias = (name: string) => weight(`${name}.bias`)
  const add = (a: string, b: string) => g.op('Add', [a, b])
  const mul = (a: string, b: string) => g.op('Mul', [a, b])
  const silu = (x: string) => mul(x, g.op('Sigmoid', [x]))
  const reshape = (x: string, ...shape: number[]) => g.op('Reshape', [x, g.constant(shape)])

  /** x Wᵀ for tokens [N, T, C], without the bias. */
  const product = (x: string, name: string) =>
    g.op('com.microsoft.FusedMatMul', [x, weight(`${name}.weight`)], { transB: 1 })
  const linear = (x: string, name: string) => add(product(x, name), bias(name))
  /** x Wᵀ + b for vectors [N, C]. */
  const linearOfVectors = (x: string, name: string) =>
    g.op('Gemm', [x, weight(`${name}.weight`), bias(name)], { transB: 1 })

  const axis1 = g.constant([1])
  const sizes = new Map([2, 3, 6].map((n) => [n, g.constant(Array(n).fill(hidden))]))
  const split = (x: string, n: 2 | 3 | 6) =>
    g.ops(n, 'Split', [x, sizes.get(n) as string], { axis: -1 })
  const modulation = (name: string, n: 2 | 6) =>
    split(g.op('Unsqueeze', [linearOfVectors(condition, `${name}.adaLN_modulation.1`), axis1]), n)

  const one = g.constant(Float32Array.of(1))
  const ones = g.constant(new Float32Array(hidden).fill(1))
  const zeros = g.constant(new Float32Array(hidden))
  function modulatedNorm(x: string, shift: string, scale: string): string {
    const attributes = { axis: -1, epsilon: { float: 1e-6 } }
    const normed = g.op('LayerNormalization', [x, ones, zeros], attributes)
    return add(mul(normed, add(scale, one)), shift)
  }

  const x = g.input('x', 'float', [batch, channels, height, width])
  const t = g.input('t', 'float', [batch])
  const y = g.input('y', 'int64', [batch])

  const embedder = 'x_embedder.proj'
  const patches = g.op('Conv', [x, weight(`${embedder}.weight`), bias(embedder)], {
    kernel_shape: [patchSize, patchSize],
    strides: [patchSize, patchSize],
  })
  const position = g.constant(positionTable(rows, columns, hidden), [1, tokens, hidden])
  let h = add(
    g.op('Transpose', [reshape(patches, batch, hidden, tokens)], { perm: [0, 2, 1] }),
    position,
  )

  const frequencies = Float32Array.from({ length: 128 }, (_, i) => 10000 ** (-i / 128))
  const angle = mul(g.op('Unsqueeze', [t, axis1]), g.constant(frequencies, [1, 128]))
  const waves = g.op('Concat', [g.op('Cos', [angle]), g.op('Sin', [angle])], { axis: -1 })
  const time = linearOfVectors(silu(linearOfVectors(waves, 't_embedder.mlp.0')), 't_embedder.mlp.2')
  const label = g.op('Gather', [weight('y_embedder.embedding_table.weight'), y], { axis: 0 })
  const condition = silu(add(time, label))

  for (let i = 0; i < depth; i++) {
    const block = `blocks.${i}`
    const [shift1, scale1, gate1, shift2, scale2, gate2] = modulation(block, 6) as Six
    const qkv = product(modulatedNorm(h, shift1, scale1), `${block}.attn.qkv`)
    const attention = g.op(
      'com.microsoft.MultiHeadAttention',
      [...split(qkv, 3), bias(`${block}.attn.qkv`)],
      { num_heads: heads },
    )
    h = add(h, mul(gate1, linear(attention, `${block}.attn.proj`)))
    const inner = g.op('com.microsoft.FastGelu', [
      product(modulatedNorm(h, shift2, scale2), `${block}.mlp.fc1`),
      bias(`${block}.mlp.fc1`),
    ])
    h = add(h, mul(gate2, linear(inner, `${block}.mlp.fc2`)))
  }

  const [shift, scale] = modulation('final_layer', 2) as Two
  const out = linear(modulatedNorm(h, shift, scale), 'final_layer.linear')
  const grid = reshape(out, batch, rows, columns, patchSize, patchSize, outChannels)
  const image = g.op('Transpose', [grid], { perm: [0, 5, 1, 3, 2, 4] })
  const shape = [batch, outChannels, height, width]
  g.output(reshape(image, ...shape), 'out', shape)
  return g.encode()
}

type Two = [string, string]
type Six = [...Two, ...Two, ...Two]

/** The fixed table [T, C]; a token's row is [sin(column w) | cos(column w) | sin(row w) | cos(row w)]. */
function positionTable(rows: number, columns: number, hidden: number): Float32Array {
  const quarter = hidden / 4
  return Float32Array.from({ length: rows * columns * hidden }, (_, i) => {
    const token = Math.floor(i / hidden)
    const part = Math.floor((i % hidden) / quarter)
    const place = part < 2 ? token % columns : Math.floor(token / columns)
    const angle = place * 10000 ** (-(i % quarter) / quarter)
    return part % 2 === 0 ? Math.sin(angle) : Math.cos(angle)
  })
}
