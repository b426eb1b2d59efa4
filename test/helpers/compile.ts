// Modules of a user's project, as TypeScript sees them.

import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/root.cjs'
import { temporaryFolder } from './files.js'

/** A project with the package as npm ships it, Node's types and the packages named, and nothing else. */
export function userProject(...packages: string[]): string {
  const folder = temporaryFolder()
  const installed = path.join(folder, 'node_modules/dit-native')
  mkdirSync(installed, { recursive: true })
  for (const name of ['package.json', 'dist']) {
    cpSync(path.join(packageRoot, name), path.join(installed, name), { recursive: true })
  }
  for (const name of ['@types/node', 'undici-types', ...packages]) {
    const link = path.join(folder, 'node_modules', name)
    mkdirSync(path.dirname(link), { recursive: true })
    if (!existsSync(link)) symlinkSync(path.join(packageRoot, 'node_modules', name), link)
  }
  return folder
}

/**
 * What the compiler finds wrong with the modules in a folder; '' where nothing is. Strict, without
 * the libraries' own declarations, where `options` says nothing else.
 */
export function compile(folder: string, options: object = {}): string {
  const compilerOptions = {
    target: 'es2023',
    lib: ['es2023', 'esnext.disposable'],
    module: 'nodenext',
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: ['node'],
    ...options,
  }
  writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions }))
  const tsc = path.join(packageRoot, 'node_modules/typescript/bin/tsc')
  const args = [tsc, '-p', folder]
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  return status === 0 ? '' : stdout + stderr
}
