// The types that a user's code sees: test/consumer, compiled against the package as npm ships it.
// timeout: 120s
import { spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryFolder } from './helpers/files.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const tsc = path.join(root, 'node_modules/typescript/bin/tsc')

function run(...args: string[]): string {
  const { status, stdout } = spawnSync(process.execPath, [tsc, ...args], { encoding: 'utf8' })
  return status === 0 ? '' : stdout
}

/** A project with the package and Node's types installed, and nothing else. */
function project(options: object): string {
  const folder = temporaryFolder()
  const installed = path.join(folder, 'node_modules/dit-native')
  mkdirSync(installed, { recursive: true })
  copyFileSync(path.join(root, 'package.json'), path.join(installed, 'package.json'))
  cpSync(path.join(root, 'dist'), path.join(installed, 'dist'), { recursive: true })
  mkdirSync(path.join(folder, 'node_modules/@types'))
  for (const name of ['@types/node', 'undici-types']) {
    symlinkSync(path.join(root, 'node_modules', name), path.join(folder, 'node_modules', name))
  }
  cpSync(path.join(root, 'test/consumer'), folder, { recursive: true })
  const compilerOptions = {
    target: 'es2022',
    module: 'nodenext',
    strict: true,
    noUncheckedIndexedAccess: true,
    noEmit: true,
    types: ['node'],
    ...options,
  }
  writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions }))
  return folder
}

for (const [name, options] of [
  ['strict, declarations checked too', { skipLibCheck: false }],
  ['exact optional properties', { exactOptionalPropertyTypes: true }],
  ['a newer library', { lib: ['esnext'] }],
] as const) {
  test(`a user's modules compile, and their wrong uses do not: ${name}`, () => {
    assert.is(run('-p', project(options)), '')
  })
}

test('the check would notice', () => {
  const folder = project({})
  writeFileSync(
    path.join(folder, 'wrong.mts'),
    "import { DiT } from 'dit-native'\nconst n: number = await DiT.load('x')\n// @ts-expect-error\nawait DiT.load('x')\n",
  )
  const output = run('-p', folder)
  assert.match(output, /wrong\.mts\(2,7\): error TS2322/)
  assert.match(output, /wrong\.mts\(3,1\): error TS2578/)
})

test.run()
