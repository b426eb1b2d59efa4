// Elements in one expression, and the few that are asked for everywhere.

/** @typedef {Node | string | number | false | null | undefined} Child */

/**
 * An element with properties, attributes (names with a dash, and `role`), listeners (`onclick`) and
 * children.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, unknown>} [properties]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue
    if (name.includes('-') || name === 'role' || name === 'for') {
      element.setAttribute(name, String(value))
    } else Object.assign(element, { [name]: value })
  }
  for (const child of children) {
    if (child === false || child === null || child === undefined) continue
    element.append(child instanceof Node ? child : String(child))
  }
  return element
}

/**
 * The element of the page with this id.
 *
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 */
export function byId(id, type) {
  const found = document.getElementById(id)
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} #${id}`)
  return found
}

/** @param {string} id */
export const input = (id) => byId(id, HTMLInputElement)

/** @param {string} id */
export const button = (id) => byId(id, HTMLButtonElement)

/** Says something to those who hear the page. @param {string} text */
export function announce(text) {
  byId('live', HTMLElement).textContent = text
}

export const stillness = matchMedia('(prefers-reduced-motion: reduce)')
