pragma journal_mode = wal;
pragma cache_size = -20000;
create table items(id integer primary key, n integer, name text, body blob);
create index by_name on items(name);
begin;
with recursive series(i) as (select 1 union all select i + 1 from series where i < 120000)
insert into items select i, (i * 7919) % 10007, 'name' || (i * 31) % 5003, zeroblob(i % 200)
from series;
commit;
delete from items where n % 7 = 3;
update items set name = name || '-' || n where n % 5 = 0;
create table totals as select name, count(*) c, sum(n) s from items group by name;
select count(*), sum(c), max(s) from totals;
select name, c, s from totals order by s desc, name limit 5;
with ranked as (select id, n, row_number() over (partition by n order by id) r from items)
select count(*) from ranked where r = 3;
select group_concat(n) from (select distinct n from items order by n limit 30);
create virtual table words using fts5(text);
insert into words select name || ' text ' || n from items limit 20000;
select count(*) from words where words match 'text AND name1*';
vacuum;
pragma integrity_check;
