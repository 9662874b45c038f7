<?php
// Extensions, which PHP opens with RTLD_DEEPBIND, allocate for one another.
$records = [];
for ($i = 0; $i < 200000; $i++) {
  $records["key $i"] = [$i, str_repeat(chr(97 + $i % 26), $i % 80), new stdClass];
  if ($i >= 20000) unset($records['key ' . ($i - 20000)]);
}
$json = json_encode(array_slice($records, 0, 5000));
echo strlen($json), ' ', md5($json), "\n";
echo count(json_decode($json, true)), "\n";
echo md5(gzuncompress(gzcompress($json))), "\n";
echo md5(preg_replace_callback('/[0-9]+/', fn($m) => $m[0] * 7, $json)), "\n";
echo md5(iconv('UTF-8', 'UTF-16', $json)), "\n";
echo md5(serialize(unserialize(serialize($records)))), "\n";

$tree = new SplObjectStorage;
foreach (range(1, 20000) as $i) {
  $node = new ArrayObject(range(0, $i % 9));
  $tree[$node] = $i;
}
echo count($tree), "\n";
echo hash('sha512', $json), "\n";
