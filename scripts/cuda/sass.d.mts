export interface Instruction {
  at: number
  kind: string
  modifiers: string[]
  operands: string
}
export interface Kernel {
  symbol: string
  name: string
  arch: string
  code: Instruction[]
}
export interface Loop {
  main: string
  products: number
  instructions: number
  special: number
  shared: number
  copies: number
  waits: number
  kernel: number
}
export const fetchedTools: string
export function findCuobjdump(): string | undefined
export class Listing {
  readonly kernels: Omit<Kernel, 'name'>[]
  add(line: string): void
}
export function disassemble(library: string, cuobjdump?: string): Promise<Kernel[]>
export function mainLoop(code: Instruction[], kind: string): Instruction[] | undefined
export function faultsOf(kernel: Kernel): string[]
export function loopOf(kernel: Kernel): Loop | undefined
