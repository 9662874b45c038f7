-- Trees, strings, tables that grow and shrink, and coroutines.
local function tree(depth)
  if depth == 0 then return {} end
  return { tree(depth - 1), tree(depth - 1) }
end
local function count(node)
  if not node[1] then return 1 end
  return 1 + count(node[1]) + count(node[2])
end
local keep = tree(14)
for depth = 4, 14, 2 do
  local total = 0
  for _ = 1, 1 << (14 - depth) do total = total + count(tree(depth)) end
  print(depth, total)
end
print(count(keep))

local parts = {}
for i = 1, 100000 do parts[#parts + 1] = ("%d:%x"):format(i, i * 31) end
local text = table.concat(parts, ";")
print(#text, select(2, text:gsub("%x%x:", "")))
table.sort(parts)
print(parts[1], parts[#parts])
local sum = 0
for i = 1, 3000 do
  local thread = coroutine.wrap(function(a) coroutine.yield(a * 2) end)
  sum = sum + thread(i)
end
print(sum)
