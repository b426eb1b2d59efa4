// What the package exports, read from its declarations in dist/ by TypeScript's own API.

import path from 'node:path'
import * as ast from 'typescript/unstable/ast'
import { API, type Project, SymbolFlags } from 'typescript/unstable/sync'
import { type Doc, oneLine, parseDoc } from './comments.js'

/** A property or a method. */
export interface Member {
  name: string
  kind: 'property' | 'method' | 'constructor'
  static: boolean
  /** '?' where it may be left out. */
  optional: boolean
  /** Of a property. */
  type: string
  /** Of a method: its overloads. */
  signatures: string[]
  doc: Doc
}

/** One exported name. */
export interface Export {
  name: string
  kind: 'class' | 'function' | 'interface' | 'type'
  /** Of a function or a type, as TypeScript; of a class or an interface, its first line. */
  signature: string
  /** Exported interfaces whose members it has, too. */
  bases: string[]
  members: Member[]
  doc: Doc
}

/** One `import` path of the package. */
export interface EntryPoint {
  /** 'dit-native', 'dit-native/server' */
  specifier: string
  exports: Export[]
}

/** @param entries The declarations of each import path. */
export function readDeclarations(
  root: string,
  entries: readonly { specifier: string; file: string }[],
): EntryPoint[] {
  const api = new API({ cwd: root })
  try {
    const config = path.join(root, 'scripts/docs/tsconfig.json')
    const project = api.updateSnapshot({ openProjects: [config] }).getProject(config)
    if (project === undefined) throw new Error(`TypeScript does not open ${config}`)
    return entries.map(({ specifier, file }) => ({
      specifier,
      exports: new Reader(project, path.join(root, file)).exports(),
    }))
  } finally {
    api.close()
  }
}

type Symbol = ReturnType<Project['checker']['getExportsOfModule']>[number]

class Reader {
  readonly #symbols: readonly Symbol[]
  readonly #names: ReadonlySet<string>

  constructor(
    private readonly project: Project,
    file: string,
  ) {
    const source = project.program.getSourceFile(file)
    const module = source && project.checker.getSymbolAtLocation(source)
    if (module === undefined) throw new Error(`${file} is no module. Is dist/ built?`)
    this.#symbols = project.checker.getExportsOfModule(module)
    this.#names = new Set(this.#symbols.map(({ name }) => name))
  }

  exports(): Export[] {
    return this.#symbols.map((symbol) => this.#export(symbol))
  }

  #export(alias: Symbol): Export {
    const { checker } = this.project
    const isAlias = (alias.flags & SymbolFlags.Alias) !== 0
    const symbol = isAlias ? checker.getAliasedSymbol(alias) : alias
    const nodes = symbol.declarations.flatMap((handle) => handle.resolve(this.project) ?? [])
    const [node] = nodes
    if (node === undefined) throw new Error(`${alias.name} is declared nowhere`)
    const common = { name: alias.name, doc: docOf(node), bases: [], members: [] }
    if (ast.isFunctionDeclaration(node)) {
      const signature = nodes.map(signatureText).join('\n')
      return { ...common, kind: 'function', signature }
    }
    if (ast.isTypeAliasDeclaration(node)) {
      // What says only where it follows from is written out.
      const text = ast.isIndexedAccessTypeNode(node.type)
        ? `type ${alias.name} = ${checker.typeToString(checker.getDeclaredTypeOfSymbol(symbol), undefined, 1)}`
        : plainText(node)
      return { ...common, kind: 'type', signature: text.replaceAll('"', "'") }
    }
    if (ast.isClassDeclaration(node)) {
      const members = classMembers(node)
      return { ...common, kind: 'class', signature: headOf(node), members }
    }
    if (ast.isInterfaceDeclaration(node)) {
      const parents = (node.heritageClauses ?? []).flatMap(({ types }) => types.map(plainText))
      const areLinks = parents.every((name) => this.#names.has(name))
      const members = areLinks ? node.members.flatMap(memberOf) : this.#allMembers(symbol)
      const bases = areLinks ? parents : []
      return { ...common, kind: 'interface', signature: headOf(node), bases, members }
    }
    throw new Error(`There is no rule for the export ${alias.name}: ${plainText(node)}`)
  }

  /** Those of its parents, too, which nobody else documents. */
  #allMembers(symbol: Symbol): Member[] {
    const { checker } = this.project
    const properties = checker.getPropertiesOfType(checker.getDeclaredTypeOfSymbol(symbol))
    return properties.flatMap((property) => {
      const node = property.declarations[0]?.resolve(this.project)
      return node === undefined ? [] : memberOf(node)
    })
  }
}

function classMembers(node: ast.ClassDeclaration): Member[] {
  const members: Member[] = []
  for (const member of node.members.flatMap(memberOf)) {
    const before = members.at(-1)
    // A further overload has no comment of its own.
    if (before?.kind === 'method' && before.name === member.name) {
      before.signatures.push(...member.signatures)
    } else members.push(member)
  }
  return members
}

function memberOf(node: ast.Node): Member[] {
  const doc = docOf(node)
  const text = signatureText(node)
  if (doc.internal || /^(private|protected|#)/.test(text)) return []
  const isStatic = /^static\b/.test(text)
  const common = { static: isStatic, optional: false, type: '', signatures: [], doc }
  if (ast.isConstructorDeclaration(node)) {
    return [{ ...common, name: 'constructor', kind: 'constructor', signatures: [text] }]
  }
  if (ast.isMethodDeclaration(node) || ast.isMethodSignatureDeclaration(node)) {
    const name = node.name.getText()
    return [{ ...common, name, kind: 'method', signatures: [text.replace(/^static /, '')] }]
  }
  if (ast.isPropertyDeclaration(node) || ast.isPropertySignatureDeclaration(node)) {
    const value = ast.isPropertyDeclaration(node) ? (node.initializer?.getText() ?? '') : ''
    const type =
      node.type === undefined ? value.replaceAll('"', "'") : oneLine(plainText(node.type))
    const optional = 'postfixToken' in node && node.postfixToken !== undefined
    return [{ ...common, name: node.name.getText(), kind: 'property', type, optional }]
  }
  if (ast.isGetAccessorDeclaration(node)) {
    const type = node.type === undefined ? '' : oneLine(plainText(node.type))
    return [{ ...common, name: node.name.getText(), kind: 'property', type }]
  }
  throw new Error(`There is no rule for the member ${text}`)
}

function docOf(node: ast.Node): Doc {
  return parseDoc(node.jsDoc?.at(-1)?.getText() ?? '')
}

/** As it is written, from the margin, with the names of other modules as their users know them. */
function plainText(node: ast.Node): string {
  const names = [...node.getSourceFile().text.matchAll(/^import (?:type )?\* as (\w+)/gm)]
  const text = node
    .getText()
    .replace(/^export (declare )?/, '')
    .replace(/;$/, '')
  const [first = '', ...rest] = text.split('\n')
  const indent = (line: string) => line.search(/\S|$/)
  const margin = Math.min(...rest.map(indent))
  const lines = rest.map((line) => ' '.repeat((indent(line) - margin) / 2) + line.trimStart())
  const whole = [first, ...lines].join('\n')
  return names.reduce((all, [, name]) => all.replaceAll(`${name}.`, ''), whole)
}

function signatureText(node: ast.Node): string {
  return plainText(node)
    .replace(/;$/gm, '')
    .replace(/^(readonly|get) /, '')
}

/** `class DiT`, `interface LoadOptions extends DeviceOptions` */
function headOf(node: ast.ClassDeclaration | ast.InterfaceDeclaration): string {
  return oneLine(plainText(node).split('{', 1)[0] as string)
}
