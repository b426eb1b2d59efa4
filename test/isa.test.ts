// One binary for every processor: what is compiled for a newer instruction set must not leak out of
// its namespace. The linker keeps one copy of an inline function or template that several objects
// define under one name; were it the AVX-512 copy, a processor without AVX-512 would run it.
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

const objects = fileURLToPath(new URL('../build/CMakeFiles', import.meta.url))

/** The functions that the objects of a build show to the linker. */
function functions(isa: string): string[] {
  const dir = path.join(objects, `dit_simd_${isa}.dir`)
  const files = readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.o'))
    .map((name) => path.join(dir, name))
  const lines = execFileSync('nm', ['--demangle', '--defined-only', ...files], { encoding: 'utf8' })
  return lines.split('\n').filter((line) => / [TWiu] /.test(line))
}

test('an instruction set shares no function with another', () => {
  const isas = ['generic', 'avx2', 'avx512', 'avx512bf16'].filter((isa) =>
    existsSync(path.join(objects, `dit_simd_${isa}.dir`)),
  )
  assert.is(isas.length, process.arch === 'x64' ? 4 : 1)
  for (const isa of isas) {
    const all = functions(isa)
    const own = all.filter((line) => line.includes(` dit::cpu::${isa}::`))
    assert.ok(own.length > 0, `${isa}: nothing is in its namespace`)
    if (isa !== 'generic') assert.equal(own, all)
  }
})

test.run()
