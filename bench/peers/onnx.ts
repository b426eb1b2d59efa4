// Writes ONNX models: the few messages of onnx.proto (IR version 8) that a graph of operators with
// weights in another file needs, in the wire format of protocol buffers.

// A field of a message is its number and kind, then a varint, a 32-bit float, or a length and bytes.
function varint(value: number): Buffer {
  const bytes = []
  let rest = BigInt.asUintN(64, BigInt(value)) // negative numbers take ten bytes
  for (; rest > 0x7fn; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80)
  return Buffer.from([...bytes, Number(rest)])
}
const int = (field: number, value: number) => Buffer.concat([varint(field << 3), varint(value)])
const bytes = (field: number, value: Buffer) =>
  Buffer.concat([varint((field << 3) | 2), varint(value.length), value])
const text = (field: number, value: string) => bytes(field, Buffer.from(value))
const message = (field: number, ...parts: Buffer[]) => bytes(field, Buffer.concat(parts))
function float(field: number, value: number): Buffer {
  const data = Buffer.alloc(4)
  data.writeFloatLE(value)
  return Buffer.concat([varint((field << 3) | 5), data])
}

/** An integer is an INT, a `{ float }` a FLOAT, an array INTS. */
export type Attribute = number | number[] | { float: number }

function attribute(name: string, value: Attribute): Buffer {
  const [FLOAT, INT, INTS] = [1, 2, 7]
  if (Array.isArray(value))
    return message(5, text(1, name), ...value.map((n) => int(8, n)), int(20, INTS))
  if (typeof value === 'number') return message(5, text(1, name), int(3, value), int(20, INT))
  return message(5, text(1, name), float(2, value.float), int(20, FLOAT))
}

const kFloat = 1
const kInt64 = 7

/** A graph in the making. Values are called by the names that its functions return. */
export class OnnxGraph {
  readonly #nodes: Buffer[] = []
  readonly #initializers: Buffer[] = []
  readonly #inputs: Buffer[] = []
  readonly #outputs: Buffer[] = []
  #values = 0

  input(name: string, type: 'float' | 'int64', shape: number[]): string {
    this.#inputs.push(this.#valueInfo(11, name, type, shape))
    return name
  }

  /** Makes a value an output, under a name of its own. */
  output(value: string, name: string, shape: number[]): void {
    this.#node('Identity', [value], [name], {})
    this.#outputs.push(this.#valueInfo(12, name, 'float', shape))
  }

  /** Float32 values are FLOAT, numbers INT64. */
  constant(data: Float32Array | number[], shape: number[] = [data.length]): string {
    const name = this.#name('c')
    const raw = data instanceof Float32Array ? data : BigInt64Array.from(data, BigInt)
    this.#initializers.push(
      message(
        5,
        ...shape.map((n) => int(1, n)),
        int(2, data instanceof Float32Array ? kFloat : kInt64),
        text(8, name),
        bytes(9, Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength)),
      ),
    )
    return name
  }

  /** A FLOAT tensor that lies in another file, in the model's folder. */
  external(name: string, file: string, offset: number, shape: readonly number[]): string {
    const length = 4 * shape.reduce((product, n) => product * n, 1)
    const entry = (key: string, value: string) => message(13, text(1, key), text(2, value))
    this.#initializers.push(
      message(
        5,
        ...shape.map((n) => int(1, n)),
        int(2, kFloat),
        text(8, name),
        entry('location', file),
        entry('offset', String(offset)),
        entry('length', String(length)),
        int(14, 1), // EXTERNAL
      ),
    )
    return name
  }

  /** An operator with one result. A name with a dot before its last part is one of that domain. */
  op(type: string, inputs: string[], attributes: Record<string, Attribute> = {}): string {
    return this.ops(1, type, inputs, attributes)[0] as string
  }

  /** An operator with several results. */
  ops(
    count: number,
    type: string,
    inputs: string[],
    attributes: Record<string, Attribute> = {},
  ): string[] {
    const outputs = Array.from({ length: count }, () => this.#name('v'))
    this.#node(type, inputs, outputs, attributes)
    return outputs
  }

  encode(): Buffer {
    const graph = message(
      7,
      ...this.#nodes,
      text(2, 'graph'),
      ...this.#initializers,
      ...this.#inputs,
      ...this.#outputs,
    )
    const opset = (domain: string, version: number) => message(8, text(1, domain), int(2, version))
    return Buffer.concat([int(1, 8), graph, opset('', 17), opset('com.microsoft', 1)])
  }

  #name(prefix: string): string {
    return `${prefix}${this.#values++}`
  }

  #node(
    type: string,
    inputs: string[],
    outputs: string[],
    attributes: Record<string, Attribute>,
  ): void {
    const dot = type.lastIndexOf('.')
    this.#nodes.push(
      message(
        1,
        ...inputs.map((name) => text(1, name)),
        ...outputs.map((name) => text(2, name)),
        text(4, type.slice(dot + 1)),
        ...Object.entries(attributes).map(([name, value]) => attribute(name, value)),
        text(7, type.slice(0, Math.max(dot, 0))),
      ),
    )
  }

  #valueInfo(field: number, name: string, type: 'float' | 'int64', shape: number[]): Buffer {
    const dims = message(2, ...shape.map((n) => message(1, int(1, n))))
    const tensor = message(1, int(1, type === 'float' ? kFloat : kInt64), dims)
    return message(field, text(1, name), message(2, tensor))
  }
}
